"""Sources whose weights are quantised: cut as the dense models that they stand for, or refused."""

import json

import pytest
import torch
from edits import edit_config, edit_tensors
from experts import MIXTURES
from jobs import compress
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from wrappers import make_wrapper

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.planning.costs import Costs
from compressor.planning.plan import Plan
from compressor.quantization.dense import BlockScaled, Unpacked, open_source
from compressor.verification.child import verify_here
from compressor.writing.cuts import write

FILE = "model.safetensors"
BLOCK = [16, 32]  # which divides neither 24 rows nor 48 columns
IDS = torch.arange(3, 40)[None]
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}


def in_float8(folder, block=BLOCK):
    """Store the projections of a folder as DeepSeek's and Qwen's are; the dense model they stand for."""
    dense = {}
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / FILE).items()}
    for name in [n for n in tensors if "_proj.weight" in n and "vision" not in n]:
        weight = tensors[name].float()
        rows, columns = block or weight.shape
        scales = torch.zeros(-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
        stored, whole = torch.empty_like(weight, dtype=torch.float8_e4m3fn), weight.clone()
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                part = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
                scales[i, j] = weight[part].abs().max() / 448
                stored[part] = (weight[part] / scales[i, j]).to(stored.dtype)
                whole[part] = stored[part].float() * scales[i, j]
        tensors[name], dense[name] = stored, whole.bfloat16()
        tensors[name + "_scale_inv"] = scales if block else scales[0, 0]
    save_file(tensors, folder / FILE, {"format": "pt"})
    edit_config(folder, dtype="bfloat16", quantization_config=FP8 | {"weight_block_size": block})
    return dense


@pytest.fixture
def float8(make_checkpoint, tmp_path):
    folder = make_checkpoint(tmp_path / "float8", num_hidden_layers=2, intermediate_size=40)
    in_float8(folder)
    return folder


@pytest.mark.parametrize("block", [BLOCK, None], ids=["blocks", "whole"])
def test_weights_are_multiplied_by_their_scales(make_checkpoint, tmp_path, block):
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=2, intermediate_size=40)
    dense = in_float8(folder, block)
    source = open_source(folder)
    assert type(source) is BlockScaled and len(dense) == 14
    read = source.read(dense)
    assert all(torch.equal(read[name], dense[name]) for name in dense)
    assert source.bytes == 2 * source.parameters == Costs.of(source).total["bytes"]
    assert source.dtype == torch.bfloat16 and "dequantised" in " ".join(source.notes)


def test_single_experts_are_multiplied_by_their_scales(make_checkpoint, tmp_path):
    """As DeepSeek V3 is published: each expert's matrices have scales, the router and its bias none."""
    sizes = MIXTURES["deepseek_v3"] | {"num_hidden_layers": 2}
    folder = make_checkpoint(tmp_path / "model", "deepseek_v3", **sizes)
    dense = in_float8(folder)
    source = open_source(folder)
    experts = "model.layers.1.mlp.experts."
    read = source.read_block(1)
    for expert in range(6):
        gate, up, down = (
            dense[f"{experts}{expert}.{part}_proj.weight"] for part in ("gate", "up", "down")
        )
        assert torch.equal(read["mlp.experts.gate_up_proj"][expert], torch.cat((gate, up)))
        assert torch.equal(read["mlp.experts.down_proj"][expert], down)
    write(source, Plan.whole(source), tmp_path / "out")
    written = load_file(tmp_path / "out" / FILE)
    assert all(torch.equal(written[name], tensor) for name, tensor in dense.items())


@torch.no_grad()
def test_it_computes_what_transformers_makes_of_it(make_checkpoint, tmp_path):
    """Of blocks that divide every weight, which are all that it takes."""
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=2, intermediate_size=40)
    in_float8(folder, [8, 8])
    (ours,) = BlockStream(open_source(folder), dtype=torch.float32).logits([IDS])
    model = AutoModelForCausalLM.from_pretrained(folder).eval().float()
    torch.testing.assert_close(ours, model(IDS).logits, atol=1e-4, rtol=1e-4)


def test_a_job_with_it(float8, tmp_path, text_file, capsys):
    out = tmp_path / "out"
    given = ["--calibration", text_file, "--length", 32, "--samples", 4, "--align", 4]
    assert (
        compress(float8, out, "--keep", 0.8, *given, "--max-perplexity-ratio", "off", "--json") == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert "logits within" in result["verified"]
    assert any("the result is dense, of bfloat16" in note for note in result["warnings"])
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "bfloat16"
    assert {t.dtype for t in load_file(out / FILE).values()} == {torch.bfloat16}
    assert Checkpoint(out).parameters < open_source(float8).parameters


def test_one_of_texts_and_images(llama, tmp_path):
    source = make_wrapper(tmp_path / "model", "llava", llama, num_hidden_layers=2)
    in_float8(source)
    plan = Plan([{"attention": [0, 2], "ffn": [*range(20)]}] * 2, {"scores": {}})
    write(open_source(source), plan, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in {*config, *config["text_config"]}
    assert Checkpoint(tmp_path / "out").side.keys() == open_source(source).side.keys()


@pytest.mark.parametrize("scheme", ["w4a16:16", "fp8"])
def test_what_was_packed_is_cut_again(llama, tmp_path, text_file, scheme):
    """A result of --quantize, as the dense model that its numbers stand for."""
    pytest.importorskip("compressed_tensors")
    packed = tmp_path / "packed"
    given = ["--calibration", text_file, "--length", 32, "--samples", 4, "--no-verify"]
    assert compress(llama, packed, "--quantize", scheme, *given) == 0
    source = open_source(packed)
    assert type(source) is Unpacked and source.packing is None
    plan = Plan([{"attention": [0, 2], "ffn": [*range(20)]}] * 3, {"scores": {}})
    from compressor.job.result import make_record
    from compressor.writing.record import write_record

    out = tmp_path / "out"
    chosen = write(source, plan, out)
    write_record(out, make_record(source, plan, "uniform", chosen))
    assert verify_here(out, packed)["logits_difference"] <= 1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(UP + "_scale_inv"), r"in FP8 without .*\.dequantize\(\)"),
        (
            lambda t: t.update({UP + "_scale_inv": torch.ones(2, 2)}),
            r"in blocks of \[16, 32\] makes",
        ),
    ],
)
def test_scales_that_are_not_of_the_blocks(float8, change, words):
    edit_tensors(float8, change)
    with pytest.raises(InputError, match=words):
        open_source(float8)


UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            {"quant_method": "gptq", "bits": 4},
            r"quantised by 'gptq'.*dequantize\(\)\.save_pretrained",
        ),
        (
            {"quant_method": "compressed-tensors", "format": "x"},
            r"'compressed-tensors'.*dense copy",
        ),
        (FP8 | {"weight_block_size": [128]}, "not two numbers"),
    ],
    ids=str,
)
def test_others_are_refused_with_the_command(float8, said, words):
    edit_config(float8, quantization_config=said)
    with pytest.raises(InputError, match=words):
        open_source(float8)
