#!/usr/bin/env bash
# BESA: half of the weights become zero, and those that stay have 4 bits, learned together.
#     examples/besa_4bit.sh [SOURCE [DEST [OPTION...]]]
# For a real model, whose widths are multiples of 128:
#     examples/besa_4bit.sh Llama-2-7B Llama-2-7B-besa --calibration c4.jsonl --samples 128 --length 2048 \
#         --quantize w4a16
# Zeros alone make nothing smaller; the 4 bits do (docs/weights.md). vLLM and transformers load the folder
# where compressed-tensors is installed: pip install -e '.[quantize]'.
set -eu
source=${1:-examples/tiny-llama}
dest=${2:-build/besa-4bit}
compressor sparsify "$source" "$dest" --sparsity 0.5 --method besa --quantize w4a16:64 \
    --calibration stdlib --samples 16 --length 128 "${@:3}"
compressor inspect "$dest"
