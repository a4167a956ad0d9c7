"""`compress --quantize`: what is written, who loads it, and what it computes."""

import json
import re
import shutil

import pytest
import torch
from jobs import compress, said, same_bytes, stage
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compressor.analysis.inspection import inspect
from compressor.config.packing import W4A16, Packing
from compressor.errors import VerificationError
from compressor.job.quantize import adopt
from compressor.model.checkpoint import Checkpoint
from compressor.model.loading import prompt_ids
from compressor.model.tensors import INDEX, SINGLE
from compressor.quantization.reading import PackedCheckpoint, open_model
from compressor.quantization.stream import Quantizing
from compressor.report.result import Result
from compressor.report.sparse import table
from compressor.text.tokenizer import PROMPTS
from compressor.verification.child import verify_here
from compressor.writing.packed import Packed
from compressor.writing.writer import write_folder

GROUP = 16


def fake_quantised(folder, group=GROUP):
    """The dense model with its projections rounded by the formula, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            wide = module.weight.float().unflatten(-1, (-1, group))
            step = wide.abs().amax(-1, keepdim=True).div(7.5).to(module.weight.dtype)
            rounded = (wide / step.float()).round().clamp(-8, 7) * step.float()
            module.weight.data = rounded.flatten(-2).to(module.weight.dtype)
    return model


@torch.no_grad()
def logits(model, folder):
    tokenizer = Checkpoint(folder).tokenizer()
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    return model(input_ids=ids).logits.float()


def quantize(source, dest, *arguments) -> int:
    command = [source, dest, "--quantize", "w4a16", "--quantize-group", GROUP]
    learning = () if "--quantize-clip" in arguments else ("--quantize-clip", "none")
    return compress(*command, "--no-verify", *learning, *arguments)


def test_stock_transformers_computes_the_fake_quantised_model(any_family, tmp_path, capsys):
    """Llama with a tied head, Qwen2 with biases, and the others; not what has no Linear modules."""
    if other := Checkpoint(any_family).family.unpacked:
        assert quantize(any_family, tmp_path / "q") == 2
        assert f"has others ({other})" in said(capsys)
        return
    assert quantize(any_family, tmp_path / "q") == 0
    model, found = AutoModelForCausalLM.from_pretrained(tmp_path / "q", output_loading_info=True)
    assert not any(found.values())
    expected = logits(fake_quantised(any_family), any_family)
    torch.testing.assert_close(logits(model, any_family), expected, rtol=0, atol=2e-5)
    dense = AutoModelForCausalLM.from_pretrained(any_family)
    assert not torch.allclose(expected, logits(dense, any_family), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(make_checkpoint, tmp_path, dtype):
    source = make_checkpoint(tmp_path / "m", dtype=dtype)
    assert quantize(source, tmp_path / "q") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype="auto")
    assert torch.equal(logits(model, source), logits(fake_quantised(source), source))


@pytest.mark.fresh_process
def test_verified_in_a_fresh_process(llama, tmp_path, capsys):
    command = [llama, tmp_path / "q", "--quantize", "w4a16", "--quantize-group", GROUP, "--json"]
    assert compress(*command, "--quantize-clip", "none") == 0
    result = json.loads(capsys.readouterr().out)
    assert re.fullmatch(r"4-bit within \d\.\de[-+]\d\d", result["verified"])


def test_sizes_are_those_of_the_files(llama, quantised):
    source, written = Checkpoint(llama), open_model(quantised)
    record = json.loads((quantised / "compression.json").read_text())
    assert written.parameters == source.parameters == record["parameters_after"]
    assert written.bytes == record["bytes_after"] == Packed(source, Packing(W4A16, GROUP)).bytes()
    stored = load_file(quantised / SINGLE)
    assert sum(t.nbytes for t in stored.values()) == written.bytes
    # 4 bits, a float32 scale for 16 weights, and 16 bytes of shape a matrix
    matrices = [t for n, t in source.tensors.items() if "proj" in n]
    shapes = 8 * 16 * len(matrices) / sum(t.numel for t in matrices)
    assert record["quantization"]["bits_per_weight"] == pytest.approx(4 + 32 / GROUP + shapes)
    assert {n for n in stored if "norm" in n or "embed" in n or "head" in n} < source.tensors.keys()


def test_keeping_everything_is_no_cut(llama, quantised, tmp_path):
    assert quantize(llama, tmp_path / "q", "--keep", 1) == 0
    for name in (SINGLE, "config.json", "compression.json", "README.md"):
        assert same_bytes(tmp_path / "q" / name, quantised / name)


def check_result(result: dict, folder) -> None:
    written = open_model(folder)
    assert written.units["ffn"] % GROUP == 0
    assert written.parameters == result["parameters_after"] < result["parameters_before"]
    assert written.bytes == result["bytes_after"]
    assert result["perplexity_unquantized"] != result["perplexity_after"] > 1
    record = json.loads((folder / "compression.json").read_text())
    assert record["quantization"]["group"] == GROUP
    assert record["perplexity_unquantized"] == result["perplexity_unquantized"]
    assert sorted(p.name for p in folder.glob("*.safetensors")) == [SINGLE]
    card = (folder / "README.md").read_text()
    assert "compressed-tensors" in card and "vLLM" in card and "Perplexity" in card
    assert not (folder / "quantized").exists()
    AutoModelForCausalLM.from_pretrained(folder)


def test_after_cuts_and_repairs(llama, text_file, tmp_path, capsys):
    texts = ["--calibration", text_file, "--length", 32, "--samples", 4, "--evaluation", text_file]
    options = ["--keep", 0.8, 0.7, "--json", "--max-perplexity-ratio", "off", *texts]
    assert quantize(llama, tmp_path / "q", *options) == 0
    for result in json.loads(capsys.readouterr().out):
        check_result(result, tmp_path / "q" / f"keep-{result['keep_asked']}")


@pytest.mark.slow
def test_after_recovery_and_verified(llama, text_file, tmp_path, capsys):
    command = [
        llama, tmp_path / "q", "--keep", 0.8, "--calibration", text_file, "--length", 32,
        "--evaluation", text_file, "--recover", "lora", "--recover-steps", 4, "--recover-batch", 2,
        "--quantize", "w4a16", "--quantize-group", GROUP, "--json", "--max-perplexity-ratio", "off",
    ]  # fmt: skip
    assert compress(*command) == 0
    result = json.loads(capsys.readouterr().out)
    check_result(result, tmp_path / "q")
    assert "4-bit within" in result["verified"] and "logits within" in result["verified"]
    assert result["recovery"]["losses"]


def test_cuts_come_out_in_whole_groups(llama, text_file, tmp_path):
    """48 channels are not whole groups of 32, but a cut to 32 is; so is a cut of heads."""
    options = ["--quantize-group", 32, "--keep", 0.9, "--method", "random", "--repair", "none"]
    assert quantize(llama, tmp_path / "q", *options) == 0
    assert open_model(tmp_path / "q").units == {"attention": 4, "ffn": 32}


def test_the_stages_read_it(llama, quantised, text_file, capsys):
    capsys.readouterr()
    assert stage("eval", quantised, "--text", text_file, "--length", 32, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert verify_here(quantised)["parameters"] == Checkpoint(llama).parameters
    assert stage("estimate", quantised, "--before", llama, "--device", "h200", "--json") == 0
    before, after = json.loads(capsys.readouterr().out)["models"]
    assert after["total"]["bytes"] == PackedCheckpoint(quantised).bytes < before["total"]["bytes"]
    for key in ("parameters", "flops_per_token", "kv_bytes"):
        assert after["total"][key] == before["total"][key]
    saved = before["total"]["bytes"] - after["total"]["bytes"]
    assert before["total"]["decode_bytes"] - after["total"]["decode_bytes"] == saved
    assert stage("estimate", quantised, "--device", "cpu", "--measure") == 2
    assert "unpacks the weights" in capsys.readouterr().err
    result = inspect(quantised)
    assert result["parameters"] == Checkpoint(llama).parameters and result["group"] == GROUP
    assert result["bytes"] == PackedCheckpoint(quantised).bytes
    assert result["layout"] == "uniform" and not result["problems"]
    loads = {row["target"]: row["loads"] for row in result["loads"]}
    assert next(iter(loads.values())) is True and loads[f"4-bit kernels, group {GROUP}"] is False
    assert found["perplexity"] > 1


def test_several_shards(llama, tmp_path):
    checkpoint = Checkpoint(llama)
    blocks = Quantizing(checkpoint, Packing(W4A16, GROUP)).blocks()
    write_folder(
        Packed(checkpoint, Packing(W4A16, GROUP), blocks), tmp_path / "q", shard_bytes=12_000
    )
    assert len(list((tmp_path / "q").glob("*.safetensors"))) > 1
    model, found = AutoModelForCausalLM.from_pretrained(tmp_path / "q", output_loading_info=True)
    assert not any(found.values())
    expected = logits(fake_quantised(llama), llama)
    torch.testing.assert_close(logits(model, llama), expected, rtol=0, atol=2e-5)


def test_one_block_is_read_at_a_time(llama, monkeypatch):
    read = []
    original = Checkpoint.read_block
    monkeypatch.setattr(
        Checkpoint, "read_block", lambda self, b: read.append(b) or original(self, b)
    )
    blocks = Quantizing(Checkpoint(llama), Packing(W4A16, GROUP)).blocks()
    for index in range(3):
        next(blocks)
        assert read == list(range(index + 1))


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale"])
def test_verification_sees_a_changed_file(quantised, tmp_path, part):
    folder = tmp_path / "q"
    shutil.copytree(quantised, folder)
    tensors = load_file(folder / SINGLE)
    tensor = tensors[f"model.layers.1.mlp.up_proj.{part}"]
    tensor.view(-1)[3] += 1
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="packed weights of block 1"):
        verify_here(folder)


def test_verification_compares_logits(llama, quantised, tmp_path):
    checkpoint = Checkpoint(llama)
    prompts = [ids[0] for ids in prompt_ids(checkpoint.tokenizer(), checkpoint.positions)]
    quantizing = Quantizing(checkpoint, Packing(W4A16, GROUP), prompts)
    for _ in quantizing.blocks():
        pass
    found = {str(i): x for i, x in enumerate(quantizing.logits())}
    save_file(found, tmp_path / "right")
    assert verify_here(quantised, expected=tmp_path / "right")["logits_difference"] < 1e-5
    found["1"][0, 0] += 0.01 * found["1"].std()
    save_file(found, tmp_path / "wrong")
    with pytest.raises(VerificationError, match="differ from the model's in memory"):
        verify_here(quantised, expected=tmp_path / "wrong")


def test_adopting_may_be_interrupted(tmp_path):
    for name in (INDEX, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (tmp_path / name).write_text("dense")
    out = tmp_path / "quantized"
    out.mkdir()
    (out / SINGLE).write_text("packed")
    (out / "config.json").write_text("packed")
    files = [SINGLE, "config.json"]
    (out / SINGLE).replace(tmp_path / SINGLE)  # as far as it came
    for _ in range(2):
        adopt(tmp_path, files)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", SINGLE]


def test_after_zeros(llama, text_file, tmp_path, capsys):
    """Pruned weights stay zero, and the card tells of both."""
    options = ["--method", "wanda", "--sparsity", 0.5]
    texts = ["--calibration", text_file, "--length", 32, "--samples", 4]
    assert quantize(llama, tmp_path / "q", *options, *texts, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    written = open_model(tmp_path / "q")
    blocks = [written.read_block(b) for b in range(3)]
    zeros = sum(int((t == 0).sum()) for b in blocks for n, t in b.items() if "proj" in n)
    assert zeros >= result["zeros"] > 0
    record = json.loads((tmp_path / "q" / "compression.json").read_text())
    assert record["sparsity"]["asked"] == 0.5 and record["quantization"]["group"] == GROUP
    assert "were zeroed by `wanda`" in (tmp_path / "q" / "README.md").read_text()
    assert verify_here(tmp_path / "q")["loads"]


def test_a_single_sequence_is_refused_by_what_needs_more(llama, text_file, tmp_path, capsys):
    """Nothing is repaired where nothing is cut."""
    texts = ["--calibration", text_file, "--length", 32, "--samples", 1]
    assert quantize(llama, tmp_path / "q", "--quantize-clip", "learned", *texts) == 2
    message = said(capsys)
    assert "quantize_clip='none'" in message and "--repair" not in message


def test_learned_after_a_cut(llama, text_file, tmp_path):
    texts = ["--calibration", text_file, "--length", 32, "--samples", 4]
    options = ["--keep", 0.8, "--quantize-clip", "learned"]
    assert quantize(llama, tmp_path / "q", *options, *texts) == 0
    record = json.loads((tmp_path / "q" / "compression.json").read_text())["quantization"]
    assert record["clip"] == "learned" and record["calibration"]["sha256"]
    assert all(len(block["held_back"]) == 3 for block in record["blocks"])
    assert verify_here(tmp_path / "q")["loads"]


def test_jointly_with_besa(make_checkpoint, text_file, tmp_path, capsys):
    """Scales and zeros are learned together; the scales survive the dense folder between."""
    source = make_checkpoint(tmp_path / "m", dtype=torch.bfloat16)
    texts = ["--calibration", text_file, "--length", 32, "--samples", 4, "--evaluation", text_file]
    zeros = ["--sparsity", 0.5, "--json"]
    counts = {}
    for how in ("learned", "none"):
        dest = tmp_path / how
        assert quantize(source, dest, *zeros, *texts, "--quantize-clip", how) == 0
        result = json.loads(capsys.readouterr().out)
        record = json.loads((dest / "compression.json").read_text())
        assert record["quantization"]["clip"] == {"learned": "joint", "none": "none"}[how]
        # what was zeroed and quantised together is packed without another rounding
        errors = [e for b in record["quantization"]["blocks"] for e in b["error"].values()]
        assert (max(errors) < 1e-10) == (how == "learned")
        counts[how] = result["zeros"]
        shown = table([Result(**result)])
        assert result["update"] == "none" and "obs" not in shown.title
        rows = [*shown.columns[0].cells]
        assert "perplexity, not quantised" in rows and "perplexity" in rows
        assert result["perplexity_unquantized"] != result["perplexity_after"]
        assert verify_here(dest)["loads"]
    assert counts["learned"] >= counts["none"] > 0
