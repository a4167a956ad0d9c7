"""The one benchmark: an op's provider, compared with the reference and then timed.

`__main__.py` has pytest collect `test_speed`; `bench/bench_ops.py` of a clone has a test of its own.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from compressor.kernels.bench.case import Case
from compressor.kernels.bench.cases import CASES
from compressor.kernels.bench.timing import seconds

ROUNDS = 5


@dataclass(frozen=True)
class Timing:
    """What is timed: one provider of one op on one input."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    provider: str
    device: str

    def __str__(self) -> str:
        return f"{self.op}-{'x'.join(map(str, self.shape))}-{self.dtype}-{self.provider}"


@lru_cache(1)
def built(op: str, shape: tuple, dtype: str, device: str) -> Case:
    """The case, which its providers, timed one after the other, have in common."""
    torch.manual_seed(0)
    return CASES[op].case(shape, device, dtype)


def measured(benchmark, wanted: Timing) -> dict:
    """A provider's figures, by pytest-benchmark's fixture; AssertionError if its output is not that of
    the reference.
    """
    case = built(wanted.op, wanted.shape, wanted.dtype, wanted.device)
    run, on_gpu = case.providers[wanted.provider], wanted.device == "cuda"
    if wanted.provider != "eager":
        case.compare(run(), case.providers["eager"]())

    def synchronised():
        run()
        if on_gpu:
            torch.cuda.synchronize()

    benchmark.group = f"{wanted.op} {wanted.shape} {wanted.dtype}"
    benchmark.pedantic(synchronised, rounds=ROUNDS, warmup_rounds=1)
    by_clock = benchmark.enabled and not on_gpu
    row = {
        "op": wanted.op,
        "shape": list(wanted.shape),
        "dtype": wanted.dtype,
        "provider": wanted.provider,
        "seconds": benchmark.stats.stats.median if by_clock else seconds(run, wanted.device),
        "bytes": case.bytes,
        "operations": case.operations,
    }
    benchmark.extra_info |= row
    return row


def test_speed(benchmark, record_property, timing):
    record_property("figures", measured(benchmark, timing))
