#!/usr/bin/env bash
# Cut, then serve: the folder in vLLM, and a GGUF file in llama.cpp.
#     examples/cut_and_serve.sh [SOURCE [DEST [OPTION...]]]
#     ENGINE=vllm examples/cut_and_serve.sh Qwen3-8B Qwen3-8B-80        goes on with `vllm serve`
#     ENGINE=llama.cpp examples/cut_and_serve.sh Qwen3-8B Qwen3-8B-80   goes on with `llama-server`
# `make serve` has both engines run results of every family (docs/serving.md). --align 64 keeps FFN widths
# that tensor cores want. The export needs pip install -e '.[gguf]'.
set -eu
source=${1:-examples/tiny-llama}
dest=${2:-build/served-80}
compress "$source" "$dest" --keep-blocks 0.8 --align 64 --fast --calibration stdlib "${@:3}"
compressor export "$dest" "$dest.gguf" --type q8_0
vllm=(vllm serve "$dest")
llama=(llama-server -m "$dest.gguf" --port 8080)
case "${ENGINE:-}" in
    vllm) exec "${vllm[@]}" ;;
    llama.cpp) exec "${llama[@]}" ;;
esac
printf 'Serve it with\n    %s\nor\n    %s\n' "${vllm[*]}" "${llama[*]}"
