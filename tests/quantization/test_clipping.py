"""Learned clipping: its gradient, its start, and that it helps where it is kept."""

import pytest
import torch

from compressor.config.packing import W4A16, Packing
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.quantization.clipping import Clipping, straight_through
from compressor.quantization.scheme import dequantized, integers, scales, stored_scales
from compressor.quantization.stream import Calibration, Quantizing
from compressor.text.texts import read_text
from compressor.text.tokens import tokenize

GROUP = 16


@pytest.fixture
def calibration(llama, text_file):
    checkpoint = Checkpoint(llama)
    tokens = tokenize(read_text(str(text_file)), checkpoint.tokenizer(), 32)
    return Calibration(BlockStream(checkpoint), tokens.sequences[:8])


def quantised(checkpoint, calibration=None):
    quantizing = Quantizing(checkpoint, Packing(W4A16, GROUP), calibration=calibration)
    return list(quantizing.blocks()), quantizing.record


def test_the_straight_through_gradient():
    """q - W/h inside the range and q where it is clipped, times what comes from above."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    above = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    scale = (scales(weight, 4) * 0.6).requires_grad_()
    result = straight_through(weight, scale)
    (result * above).sum().backward()
    q = integers(weight, scale.detach())
    assert torch.equal(result.detach(), dequantized(q, scale.detach()))
    ratio = weight / scale.detach().repeat_interleave(4, 1)
    inside = (ratio.round() >= -8) & (ratio.round() <= 7)
    assert inside.any() and (~inside).any()
    expected = torch.where(inside, q - ratio, q) * above
    torch.testing.assert_close(scale.grad, expected.unflatten(1, (2, 4)).sum(-1))


def test_the_start_is_rounding_to_nearest():
    weights = {"w": torch.randn(4, 32, generator=torch.Generator().manual_seed(0))}
    weights["w"][0] = 0
    clipping = Clipping(weights, GROUP, steps=3)
    scale = stored_scales(scales(weights["w"], GROUP), torch.float32)
    expected = dequantized(integers(weights["w"], scale), scale)
    assert torch.equal(clipping.stored(torch.float32)["w"], expected)
    torch.testing.assert_close(clipping.quantized()["w"], expected)
    clipping.quantized()["w"].square().sum().backward()
    clipping.step(1.0)
    gamma = clipping.gammas["w"]
    assert gamma.isfinite().all() and gamma.max() <= 1 and gamma.min() < 1


def test_learning_lowers_what_is_held_back(llama, calibration):
    blocks, record = quantised(Checkpoint(llama), calibration)
    plain, _ = quantised(Checkpoint(llama))
    losses = [entry["held_back"] for entry in record]
    assert all(len(row) == 3 for row in losses)
    assert losses[0][-1] < 0.9 * losses[0][0]
    name = "mlp.up_proj.weight_scale"
    assert (blocks[0][name] <= plain[0][name]).all() and (blocks[0][name] < plain[0][name]).any()


def test_what_does_not_help_is_left_out(llama, calibration, monkeypatch):
    """Steps so long that every epoch is worse: the blocks stay as rounding to nearest has them."""
    monkeypatch.setattr("compressor.quantization.clipping.RATE", 5.0)
    blocks, record = quantised(Checkpoint(llama), calibration)
    plain, _ = quantised(Checkpoint(llama))
    assert all(min(entry["held_back"]) == entry["held_back"][0] for entry in record)
    for ours, theirs in zip(blocks, plain, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_same_seed_same_scales(llama, calibration):
    for ours, theirs in zip(
        *(quantised(Checkpoint(llama), calibration)[0] for _ in "ab"), strict=True
    ):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_one_sequence_is_too_few(calibration):
    with pytest.raises(InputError, match="at least 2 sequences, not 1"):
        Calibration(calibration.stream, calibration.sequences[:1])


def test_a_loss_that_is_not_finite(llama, calibration, monkeypatch):
    monkeypatch.setattr(
        "compressor.quantization.clipping.relative_error",
        lambda output, target: (output - target).square().sum() * float("nan"),
    )
    with pytest.raises(InputError, match="loss of block 0 is not finite"):
        quantised(Checkpoint(llama), calibration)
