"""`--quantize fp8` and `nvfp4a16`: the numbers, against formulas in float64 and stock transformers."""

import json
import math
import re

import pytest
import torch
from edits import edit_tensors
from jobs import compress, said, stage
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compressor.analysis.inspection import inspect
from compressor.config.packing import FP8, NVFP4A16, W4A16, Packing
from compressor.model.checkpoint import Checkpoint
from compressor.model.float8 import rounded
from compressor.model.loading import prompt_ids
from compressor.model.stream import BlockStream
from compressor.model.tensors import SINGLE
from compressor.quantization.floats import scales_of
from compressor.quantization.reading import PackedCheckpoint, open_model
from compressor.writing.packed import Packed
from compressor.writing.packing import GLOBAL, SCALE, empty_parts, packed, unpacked

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
SCHEMES = (FP8, NVFP4A16)


def weights_of(dtype=torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(n, 96, generator=generator).to(dtype) for n in (6, 4))
    q[2] = 0  # a row of nothing, and a group
    k[:, :16] = 0
    k[1, 20] = 30.0  # beside which the others of its group are small
    return {"q.weight": q, "k.weight": k}


def nearest(values: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The distance of every value to the nearest of some numbers or their negatives."""
    return (values.abs()[..., None] - numbers).abs().amin(-1)


def e4m3() -> torch.Tensor:
    """All numbers of 8 bits that are none of infinity, NaN and the negative."""
    bits = torch.arange(127, dtype=torch.uint8)
    return bits.view(torch.float8_e4m3fn).double()


def again(name: str, scheme: str, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """A weight, what is read of its packed form, and its scales."""
    weights, packing = weights_of(dtype), Packing.of(scheme, 128)
    scales = scales_of(weights, [[*weights]], packing)[name]
    parts = packed(name, weights[name], scales, packing)
    ends = {key.removeprefix(name): part for key, part in parts.items()}
    return weights[name], unpacked(ends, weights[name].shape, packing), ends


@pytest.mark.parametrize("name", ["q.weight", "k.weight"])
def test_float8_is_the_nearest_number_of_its_row(name):
    weight, found, ends = again(name, FP8)
    scale = weight.double().abs().amax(1, keepdim=True) / 448
    torch.testing.assert_close(ends[SCALE].double(), scale, rtol=1e-6, atol=1e-30)
    scale = ends[SCALE].double()
    error = (found.double() - weight.double()).abs() / scale
    torch.testing.assert_close(
        error, nearest(weight.double() / scale, e4m3()), rtol=1e-4, atol=1e-4
    )
    assert (found[weight == 0] == 0).all() and found.isfinite().all()


@pytest.mark.parametrize("name", ["q.weight", "k.weight"])
def test_float4_is_the_nearest_number_of_its_group(name):
    weight, found, ends = again(name, NVFP4A16, torch.bfloat16)
    shared = 448 * 6 / max(w.abs().max().item() for w in weights_of(torch.bfloat16).values())
    assert ends[GLOBAL].item() == pytest.approx(shared, rel=1e-6)
    groups = weight.double().unflatten(-1, (-1, 16))
    ideal = (groups.abs().amax(-1) / 6 * shared).clamp(2**-9, 448)
    assert (nearest(ends[SCALE].double(), e4m3()) == 0).all()
    assert ((ends[SCALE].double() - ideal).abs() <= ideal / 16 + 2**-10).all()
    step = ends[SCALE].double()[..., None] / shared
    error = (found.double().unflatten(-1, (-1, 16)) - groups).abs() / step
    expected = nearest((groups / step).clamp(-6, 6), E2M1) + (groups / step).abs().sub(6).clamp_min(
        0
    )
    # The product is rounded to bfloat16 as loaders do.
    torch.testing.assert_close(error, expected, rtol=0, atol=6 / 128)
    assert (found[weight == 0] == 0).all()


@pytest.mark.parametrize("scheme", [W4A16, *SCHEMES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_and_shapes_are_known_before(scheme, dtype):
    weight, packing = weights_of(dtype)["q.weight"], Packing.of(scheme, 32)
    scales = {SCALE: torch.ones(6, 3, dtype=dtype)}
    if scheme != W4A16:
        scales = scales_of({"q": weight}, [["q"]], packing)["q"]
    stored = packed("q", weight, scales, packing)
    empty = empty_parts("q", weight.shape, dtype, packing)
    told = [{n: (t.shape, t.dtype) for n, t in each.items()} for each in (stored, empty)]
    assert told[0] == told[1]
    size = sum(t.nbytes for t in stored.values())
    assert size == packing.weight_bytes(*weight.shape, dtype.itemsize)


def test_rounding_of_inputs():
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    x[0, 0] = 0
    found, scale = rounded(x).double(), x.double().abs().amax(-1, keepdim=True) / 448
    error = (found - x.double()).abs()
    distance = nearest(x.double() / scale.clamp_min(1e-30), e4m3()) * scale
    torch.testing.assert_close(error, distance, rtol=1e-3, atol=1e-5)
    assert found[0, 0].abs().max() == 0 and rounded(x.bfloat16()).dtype == torch.bfloat16


@pytest.fixture(scope="module", params=SCHEMES)
def floats(request, tmp_path_factory, make_checkpoint):
    """A source, and it quantised and verified."""
    folder = tmp_path_factory.mktemp("floats")
    dtype = torch.float32 if request.param == FP8 else torch.bfloat16
    source = make_checkpoint(folder / "source", dtype=dtype)
    assert compress(source, folder / "q", "--quantize", request.param) == 0
    return source, folder / "q", request.param


@torch.no_grad()
def stock(folder) -> torch.Tensor:
    checkpoint = open_model(folder)
    (ids, *_) = prompt_ids(checkpoint.tokenizer(), checkpoint.positions)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model(input_ids=ids).logits.float(), ids


def test_stock_transformers_computes_what_is_judged(floats):
    """With the rounding of inputs, which transformers does as well, in the dtype of the model."""
    source, folder, scheme = floats
    logits, ids = stock(folder)
    (ours,) = BlockStream(open_model(folder)).logits([ids])
    torch.testing.assert_close(ours.float(), logits, rtol=0, atol=2e-5)
    dense, _ = stock(source)
    assert (dense - logits).abs().max() > 1e-3
    if scheme == FP8:
        silent = PackedCheckpoint(folder)
        silent.packing = Packing(W4A16, 16)  # a stream of weights alone
        silent.read = PackedCheckpoint(folder).read
        (weights_alone,) = BlockStream(silent).logits([ids])
        assert (weights_alone - ours).abs().max() > 1e-3


def test_a_folder_of_floats(floats, text_file, capsys):
    source, folder, scheme = floats
    record = json.loads((folder / "compression.json").read_text())
    bits = 8 if scheme == FP8 else 4
    assert record["quantization"]["scheme"] == scheme and record["quantization"]["clip"] is None
    assert re.match(rf"{bits}-bit within", record["verified"])
    written, dense = PackedCheckpoint(folder), Checkpoint(source)
    packing = Packing.of(scheme, 128)
    assert written.packing == packing and written.parameters == dense.parameters
    stored = load_file(folder / SINGLE)
    assert sum(t.nbytes for t in stored.values()) == written.bytes == Packed(dense, packing).bytes()
    assert bits < record["quantization"]["bits_per_weight"] < bits + 2
    if scheme == NVFP4A16:
        shared = {stored[f"model.layers.0.self_attn.{n}_proj.weight{GLOBAL}"].item() for n in "qkv"}
        assert len(shared) == 1
    found = inspect(folder)
    assert found["scheme"] == scheme and found["parameters"] == dense.parameters
    assert not found["problems"] and found["loads"][0]["loads"] is True
    (kernels,) = (row for row in found["loads"] if row["target"] == f"{scheme} kernels")
    assert kernels["loads"] is (scheme == FP8) and kernels["because"]
    card = (folder / "README.md").read_text()
    assert f"quantised to {bits} bits" in card and packing.words in card
    assert ("reads is rounded to 8 bits" in card) == (scheme == FP8)
    capsys.readouterr()
    assert stage("eval", folder, "--text", text_file, "--length", 32, "--json") == 0
    assert math.isfinite(json.loads(capsys.readouterr().out)["perplexity"])
    assert stage("estimate", folder, "--device", "h200", "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)["models"]
    assert told["total"]["bytes"] == written.bytes and told["stored"] == packing.words


@pytest.mark.parametrize("scheme", SCHEMES)
def test_after_a_cut(make_checkpoint, text_file, tmp_path, scheme):
    source = make_checkpoint(tmp_path / "m", dtype=torch.bfloat16)
    texts = ["--calibration", text_file, "--length", 32, "--samples", 4, "--evaluation", text_file]
    options = ["--keep", 0.8, "--repair", "ridge", "--max-perplexity-ratio", "off", *texts]
    assert compress(source, tmp_path / "q", "--quantize", scheme, *options) == 0
    written = open_model(tmp_path / "q")
    assert written.units["ffn"] % 16 == 0 and written.packing.scheme == scheme
    record = json.loads((tmp_path / "q" / "compression.json").read_text())
    assert record["perplexity_unquantized"] != record["perplexity_after"] > 1
    options = ["--keep", 0.8, "--repair", "none", "--max-perplexity-ratio", "off", *texts]
    assert compress(tmp_path / "q", tmp_path / "again", *options) == 0  # as what it stands for
    again = open_model(tmp_path / "again")
    assert again.packing is None and again.parameters < written.parameters


def test_a_source_that_computes_nothing_is_said_to(make_checkpoint, tmp_path, capsys):
    source = make_checkpoint(tmp_path / "m", dtype=torch.bfloat16)

    def broken(tensors):
        tensors["model.norm.weight"] = torch.zeros_like(tensors["model.norm.weight"])

    edit_tensors(source, broken)
    options = ["--quantize", FP8, "--evaluation", "none"]
    assert compress(source, tmp_path / "q", *options) != 0
    assert "All logits of" in said(capsys)
