#!/usr/bin/env bash
# What a GPU can tell in fifteen minutes, in two calls (docs/gpu.md):
#     bench/gpu.sh 1    480 s: install, every op against its reference, the tests, the ops' speed
#     bench/gpu.sh 2    240 s: whole jobs on eight blocks of a 7B model, stage by stage
# It needs no make, no git and no network, and ends with a table and with 1 where anything failed.
#     OUT=FOLDER        where results go, one line a case as it ends; default build/gpu
#     DEVICE=cpu        a rehearsal: every part, on tiny shapes, without a GPU
#     PARTS="ops jobs"  these parts alone
#     MOST=SECONDS      no part takes longer
#     COMMIT=HASH       of the sources, where there is no git to ask
#     WHEELS=FOLDER     of packages that this python lacks, installed for the call
#     PYTHON            the interpreter that has torch; default python3
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python3}"
OUT="${OUT:-build/gpu}"
mkdir -p "$OUT"

# transformers takes a folder `kernels` that python finds for a package of that name.
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export PYTHONPATH="$PWD/bench${PYTHONPATH:+:$PYTHONPATH}"
export COMPRESSOR_CUDA_ARCHS="${COMPRESSOR_CUDA_ARCHS:-90}"
if [ -n "${WHEELS:-}" ]; then
    "$PYTHON" -m pip install -q --no-index --no-deps --upgrade --target build/wheels "$WHEELS"/*.whl
    export PYTHONPATH="$PYTHONPATH:$PWD/build/wheels"
fi

exec "$PYTHON" bench/gpu_run.py "$@" --out "$OUT" --device "${DEVICE:-cuda}" \
    --parts "${PARTS:-}" --most "${MOST:-600}"
