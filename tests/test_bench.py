"""The microbenchmarks: every provider computes the same, and their figures can be drawn."""

import pytest
import torch
from roofline import draw

from compressor.kernels.bench.cases import CASES

RESULT = {
    "device": "a device",
    "date": "2026-01-01",
    "copy_bytes_per_second": 4e12,
    "float32_per_second": 5e13,
    "rows": [
        {"op": op, "provider": provider, "seconds": t, "bytes": 4e9, "operations": 3e9}
        for op, provider, t in (("a", "ours", 0.1), ("a", "eager", 0.2), ("b", "ours", 0.3))
    ],
}


@pytest.mark.parametrize(("op", "dtype"), [(op, d) for op in CASES for d in CASES[op].dtypes])
def test_providers_agree_on_a_small_shape(op, dtype):
    case = CASES[op].case((64, 96), "cpu", dtype)
    expected = case.providers["eager"]()
    for provider in set(CASES[op].providers["cpu"]) - {"eager"}:
        case.compare(case.providers[provider](), expected)
    assert case.bytes > 0


def test_more_channels_than_go_at_once():
    """`bench/gpu_smoke.py` has every op on the same two shapes."""
    case = CASES["eliminate"].case((160, 256), "cpu")
    case.compare(case.providers["ours"](), case.providers["eager"]())


@pytest.mark.parametrize("op", CASES)
def test_every_op_is_compared_with_a_compiled_formulation(op):
    """Here as plain PyTorch: compiling takes longer than all other tests of this file."""
    assert "compile" in CASES[op].providers["cuda"]
    case = CASES[op].case((64, 96), "cpu")
    with torch.compiler.set_stance("force_eager"):
        case.compare(case.providers["compile"](), case.providers["eager"]())


@pytest.mark.parametrize("op", CASES)
def test_what_a_case_moves_is_known_without_a_device(op):
    assert CASES[op].case((64, 96), "meta").bytes == CASES[op].case((64, 96), "cpu").bytes


def test_roofline_shows_every_timing(tmp_path):
    figure = draw(RESULT)
    marks = [
        tuple(c.get_offsets().data[0]) for c in figure.axes[0].collections if len(c.get_offsets())
    ]
    assert marks == [(0.75, 3e10), (0.75, 1.5e10), (0.75, 1e10)]
    figure.savefig(tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").stat().st_size > 10_000
