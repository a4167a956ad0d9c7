"""Times by hand, and the names of devices."""

import pytest
import torch

from compressor.analysis.estimate.roofline import DEVICES, Device, is_here, total_seconds
from compressor.errors import InputError
from compressor.model.widths import BlockWidths, ModelWidths
from compressor.model.work import Work, parts

BLOCK = BlockWidths(4096, 4096, 4096, 128, 11008, 2, vectors=2 * 4096)
LLAMA_7B = ModelWidths((BLOCK,) * 32, torch.bfloat16, 32_000, tied=False, vectors=4096)


def test_the_longer_of_the_two_decides():
    device = Device("one", bandwidth=10.0, peak={torch.float32: 100.0}, source="")
    for work, seconds, bound in (
        (Work(flops=100, bytes=5), 1.0, "compute"),
        (Work(flops=10, bytes=20), 2.0, "memory"),
        (Work(flops=0, bytes=0), 0.0, "memory"),
    ):
        assert device.seconds(work, torch.float32) == seconds
        assert device.bound(work, torch.float32) == bound
    assert total_seconds([Work(100, 5), Work(10, 20)], device, torch.float32) == 3.0


def test_llama_7b_on_an_h200_by_hand():
    """Decoding reads 12.95 GB of blocks, 262 MB of head and 537 MB of cache at 1,024 tokens."""
    found = parts(LLAMA_7B, batch=1, context=1024)
    assert sum(p.parameters for p in found) == 6_738_415_616
    decode = total_seconds((p.decode for p in found), DEVICES["h200"], torch.bfloat16)
    block = 2 * (202_383_360 + 2 * 4096 * 1025 + 10 * 4096 + 3 * 11008)
    head = 2 * (32_000 * 4096 + 4096 + 4096 + 32_000)
    embedding = 2 * 2 * 4096
    assert decode == pytest.approx((32 * block + head + embedding) / 4.8e12, rel=1e-12)
    assert decode == pytest.approx(2.866e-3, rel=1e-3)
    prefill = total_seconds((p.prefill for p in found), DEVICES["h200"], torch.bfloat16)
    compute = 2 * 1024 * 202_375_168 + 4 * 4096 * 1024 * 1025 // 2
    rest = head / 4.8e12 + 1024 * embedding / 4.8e12
    assert prefill == pytest.approx(32 * compute / 989.5e12 + rest, rel=1e-12)


def test_large_batches_turn_decoding_from_memory_to_compute():
    device = DEVICES["a100"]
    for batch, bound in ((1, "memory"), (1024, "compute")):
        block = parts(LLAMA_7B, batch, context=16)[1]
        assert device.bound(block.decode, torch.bfloat16) == bound


def test_every_device_knows_every_dtype():
    for name, device in DEVICES.items():
        assert device.name == name and device.source
        assert set(device.peak) == {torch.bfloat16, torch.float16, torch.float32}


def test_unknown_devices_are_told_the_known_ones():
    with pytest.raises(
        InputError, match=r"'b300' is not known; known are h200, a100, rtx4090, .*cpu"
    ):
        is_here("b300")
    assert [is_here(name) for name in ("h200", "cpu", "cuda", "cuda:1")] == [False, *[True] * 3]
