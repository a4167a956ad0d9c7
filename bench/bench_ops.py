"""Microbenchmarks of every op: `make bench` on a CPU, `make gpu` on a GPU.

    pytest bench/bench_ops.py [--benchmark-compare] [-k colsum]

Runs under pytest-benchmark, so runs can be stored and compared. The table in the end and the result
file hold the median, the bytes a second and their share of a copy's in the same run. A provider is
timed only if its output is that of the reference.
"""

from functools import lru_cache

import pytest
import torch
from case import Case
from cases import CASES

from compressor.analysis.estimate.machine import seconds

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 5


@lru_cache(1)
def built(op: str, shape: tuple) -> Case:
    torch.manual_seed(0)
    return CASES[op].build(shape, DEVICE)


def parameters() -> list:
    return [
        pytest.param(op, shape, provider, id=f"{op}-{'x'.join(map(str, shape))}-{provider}")
        for op, family in CASES.items()
        for shape in family.shapes[DEVICE]
        for provider in family.providers[DEVICE]
    ]


@pytest.mark.parametrize(("op", "shape", "provider"), parameters())
def test_speed(benchmark, record_row, op, shape, provider):
    case = built(op, shape)
    run = case.providers[provider]
    if provider != "eager":
        case.compare(run(), case.providers["eager"]())

    def synchronised():
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{op} {shape}"
    benchmark.pedantic(synchronised, rounds=ROUNDS, warmup_rounds=1)
    median = seconds(run, DEVICE) if DEVICE == "cuda" else benchmark.stats.stats.median
    row = {
        "op": op,
        "shape": list(shape),
        "dtype": "bfloat16",
        "provider": provider,
        "seconds": median,
        "bytes": case.bytes,
        "operations": case.operations,
    }
    benchmark.extra_info |= row
    record_row(row)
