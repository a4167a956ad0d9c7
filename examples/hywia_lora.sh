#!/usr/bin/env bash
# HyWIA without 20 % of the blocks' weights, then LoRA recovers what was lost.
#     examples/hywia_lora.sh [SOURCE [DEST [OPTION...]]]
# For a real model name a text that is like what it is for, and rows of yours for the training:
#     examples/hywia_lora.sh Llama-3.1-8B Llama-3.1-8B-80 --calibration notes.txt --recover lora:2000 \
#         --recover-config details.yaml        (docs/repair.md: data, rank, learning_rate)
set -eu
source=${1:-examples/tiny-llama}
dest=${2:-build/hywia-80}
# HyWIA reads gradients, forward and backward once; what stays is refitted before it is trained.
compress "$source" "$dest" --method hywia --keep-blocks 0.8 --repair ridge --recover lora:100 \
    --calibration stdlib --samples 32 --length 128 "${@:3}"
compressor inspect "$dest"
