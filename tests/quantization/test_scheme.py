"""The arithmetic of 4-bit weights, against float64 and against compressed-tensors."""

import pytest
import torch
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

from compressor.config.packing import W4A16, Packing
from compressor.quantization.scheme import dequantized, integers, scales, stored_scales
from compressor.writing.packing import (
    SCALE,
    empty_parts,
    packed,
    quantization_config,
    scheme_of,
    unpacked,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weight_of(rows=6, columns=96, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator).to(dtype)


@pytest.mark.parametrize("group", [4, 32, 96])
def test_scales_are_those_of_compressed_tensors(group):
    weight = weight_of()
    weight[0, :group] = weight[0, :group].abs()  # a group without negative weights
    given = compute_dynamic_scales_and_zp(weight, scheme_of(Packing(W4A16, group)).weights, None)[0]
    torch.testing.assert_close(scales(weight, group), given, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [8, 48])
def test_rounding_to_nearest(dtype, group):
    weight = weight_of(dtype=dtype)
    scale = stored_scales(scales(weight, group), dtype)
    q, wide = integers(weight, scale), weight.double().unflatten(-1, (-1, group))
    step = scale.double()[..., None]
    expected = (wide.float() / step.float()).round().clamp(-8, 7).double()  # a tie is float32's
    assert torch.equal(q.double().unflatten(-1, (-1, group)), expected)
    error = (expected * step - wide).abs() / step
    inside = wide / step < 7.5
    assert error[inside].max() <= 0.5 + 1e-6 and error.max() <= 0.54
    result = dequantized(q, scale)
    assert result.dtype == dtype and torch.equal(
        result.double(), (expected * step).to(dtype).flatten(-2).double()
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_zero_and_nothing_is_divided_by_zero(dtype):
    weight = weight_of(dtype=dtype)
    weight[:, ::2] = 0
    weight[0] = 0
    weight[1] = torch.finfo(dtype).tiny
    scale = stored_scales(scales(weight, 8), dtype)
    result = dequantized(integers(weight, scale), scale)
    assert result.isfinite().all() and (result[weight == 0] == 0).all()


def test_gammas_clip_the_end_that_decides():
    weight = torch.tensor([[-4.0, 1.0, 2.0, 3.0]])
    gamma = torch.tensor([[[0.5]], [[1.0]]])
    assert scales(weight, 4, gamma).item() == pytest.approx(3 / 7.5)
    gamma[1] = 0.5
    assert scales(weight, 4, gamma).item() == pytest.approx(2 / 7.5)


def test_the_gradient_of_the_gammas():
    weight = weight_of(3, 8).double()
    gamma = torch.full((2, 3, 2), 0.9, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda g: scales(weight, 4, g), gamma)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "group"), [(96, 32), (12, 4), (20, 10)])
def test_packing_is_undone_by_compressed_tensors(dtype, columns, group):
    weight = weight_of(columns=columns, dtype=dtype)
    scale = stored_scales(scales(weight, group), dtype)
    found = packed("x.weight", weight, {SCALE: scale}, Packing(W4A16, group))
    assert found["x.weight_packed"].shape == (6, -(-columns // 8))
    assert found["x.weight_shape"].tolist() == [6, columns]
    parts = {end: found["x.weight" + end] for end in ("_packed", "_scale", "_shape")}
    again = unpacked(parts, [6, columns], Packing(W4A16, group))
    assert torch.equal(again, dequantized(integers(weight, scale), scale))
    empty = empty_parts("x.weight", weight.shape, dtype, Packing(W4A16, group))
    assert {n: (t.shape, t.dtype) for n, t in empty.items()} == {
        n: (t.shape, t.dtype) for n, t in found.items()
    }


def test_the_config_is_what_compressed_tensors_reads():
    from compressed_tensors.quantization import QuantizationConfig

    given = quantization_config(Packing(W4A16, 64), ["lm_head"])
    read = QuantizationConfig.model_validate(given).config_groups["group_0"]
    assert read == scheme_of(Packing(W4A16, 64))
    assert given["quant_method"] == "compressed-tensors" and given["format"] == "pack-quantized"
    assert given["ignore"] == ["lm_head"] and given["quantization_status"] == "compressed"
