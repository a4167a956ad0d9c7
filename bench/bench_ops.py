"""Microbenchmarks of every op: `make bench` on a CPU, `bench/gpu.sh 1` on a GPU.

    pytest bench/bench_ops.py [--benchmark-compare] [-k colsum] [--device cuda] [--shapes largest]

Runs under pytest-benchmark, so runs can be stored and compared. The table in the end and the result
file hold the median, the bytes a second and their share of a copy's in the same run. A provider is
timed only if its output is that of the reference. The cases are `compressor.kernels.bench`'s, which
times one op where no clone is: `python -m compressor.kernels.bench OP`.
"""

from collections.abc import Iterator
from math import prod

import pytest

from compressor.kernels.bench.cases import CASES
from compressor.kernels.bench.speed import Timing, measured

TINY = [(64, 1024)]


def shapes_of(op: str, which: str, device: str) -> list[tuple]:
    every = TINY if which == "tiny" else CASES[op].shapes[device]
    return [max(every, key=prod)] if which == "largest" else every


def providers_of(op: str, compiled: str, device: str) -> Iterator[str]:
    """On a CPU too, where torch.compile alone is asked for."""
    if compiled == "only" and "compile" in CASES[op].providers["cuda"]:
        yield from ("ours", "compile")
    if compiled != "only":
        every = CASES[op].providers[device]
        yield from (name for name in every if name != "compile" or compiled == "also")


def pytest_generate_tests(metafunc) -> None:
    option = metafunc.config.option
    device = option.device
    metafunc.parametrize(
        ("op", "shape", "provider"),
        [
            pytest.param(op, shape, provider, id=f"{op}-{'x'.join(map(str, shape))}-{provider}")
            for op in CASES
            for shape in shapes_of(op, option.shapes, device)
            for provider in providers_of(op, option.compiled, device)
        ],
    )


def test_speed(benchmark, record_row, device, op, shape, provider):
    dtype = CASES[op].dtypes[0]
    record_row(measured(benchmark, Timing(op, shape, dtype, provider, device)))
