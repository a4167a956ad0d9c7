"""Adapters sit on every projection of every family, begin as no change, and merge exactly."""

import json
import shutil

import pytest
import torch
from edits import edit_config
from jobs import same_bytes
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compressor.config.recovery import RecoveryConfig
from compressor.config.target import Target
from compressor.model.checkpoint import Checkpoint
from compressor.model.tensors import INDEX, SINGLE
from compressor.planning.allocation import allocate
from compressor.recovery.lora import adapters, layers, load_adapted, target_modules
from compressor.recovery.merge import merged, write_merged
from compressor.recovery.precision import computed_dtype, held_dtype
from compressor.scoring.score import score
from compressor.writing.cuts import write

CPU = torch.device("cpu")
RECOVERY = RecoveryConfig("lora", rank=3, alpha=5.0)


def adapted(folder, seed=0, asked="auto"):
    return load_adapted(folder, RECOVERY, CPU, asked, seed)


def fill(model, scale=0.1):
    """Adapters as a training could have left them."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=torch.arange(3, 40)[None]).logits


def test_adapters_sit_on_every_projection_and_nothing_else(any_family):
    checkpoint, model = Checkpoint(any_family), adapted(any_family)
    found, inner = adapters(model), checkpoint.read_block(0)
    matrices = [name for name, tensor in inner.items() if tensor.ndim == 2]
    assert {f"{n}.weight" for n in target_modules(checkpoint)} == {*matrices}
    assert len(found) == len(matrices) * checkpoint.blocks
    for name, (a, b) in found.items():
        rows, columns = checkpoint.tensors[f"{name}.weight"].shape
        assert a.shape == (3, columns) and b.shape == (rows, 3)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)


def test_adapters_begin_as_no_change(any_family):
    plain = AutoModelForCausalLM.from_pretrained(any_family, dtype="auto")
    assert torch.equal(logits(adapted(any_family)), logits(plain))


def test_the_merged_checkpoint_computes_what_the_adapted_model_does(any_kinds, tmp_path):
    model = adapted(any_kinds)
    fill(model)
    expected = logits(model)
    write_merged(any_kinds, tmp_path / "out", adapters(model), 5.0 / 3)
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto"))
    assert (expected - logits(adapted(any_kinds))).abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_has_no_adapter_is_copied_bit_by_bit(any_family, tmp_path):
    """Norms, biases, embedding and head; a tied head stays tied; the config is the same text."""
    model = adapted(any_family)
    fill(model)
    write_merged(any_family, tmp_path / "out", adapters(model), 1.0)
    before, after = (
        checkpoint.read(checkpoint.tensors)
        for checkpoint in map(Checkpoint, (any_family, tmp_path / "out"))
    )
    assert before.keys() == after.keys()
    touched = {f"{name}.weight" for name in layers(model)}
    for name in before:
        assert torch.equal(before[name], after[name]) == (name not in touched), name
    for file in ("config.json", "tokenizer.json", "generation_config.json"):
        assert same_bytes(tmp_path / "out" / file, any_family / file)
    assert Checkpoint(tmp_path / "out").tied == Checkpoint(any_family).tied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merging_rounds_once(dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 30, generator=generator).to(dtype)
    a, b = torch.randn(3, 30, generator=generator), torch.randn(40, 3, generator=generator)
    exact = weight.double() + 0.4 * (b.double() @ a.double())
    found = merged(weight, a, b, 0.4)
    assert found.dtype == dtype
    half = torch.finfo(dtype).eps / 2
    assert ((found.double() - exact).abs() <= half * exact.abs() * 1.01 + 1e-6).all()


def test_several_shards_stay_several(make_checkpoint, tmp_path):
    folder = make_checkpoint(tmp_path / "in", max_shard_size="20KB", dtype=torch.bfloat16)
    model = adapted(folder)
    fill(model)
    write_merged(folder, tmp_path / "out", adapters(model), 5.0 / 3)
    one, other = (json.loads((f / INDEX).read_text()) for f in (folder, tmp_path / "out"))
    assert one == other
    before, after = Checkpoint(folder), Checkpoint(tmp_path / "out")
    assert before.tensors.keys() == after.tensors.keys() and after.dtype == torch.bfloat16
    weights = after.read(after.tensors)
    for name, module in layers(model).items():
        change = module.get_delta_weight("default")
        expected = (module.weight.float() + change).to(torch.bfloat16)
        assert torch.equal(weights[f"{name}.weight"], expected), name


@pytest.mark.parametrize("factor", [1, 2])
def test_a_head_that_the_config_ties_and_the_files_hold(make_checkpoint, tmp_path, factor):
    """A second copy is dropped, from the index too; another head is kept, and the config says so."""
    folder = make_checkpoint(tmp_path / "in", max_shard_size="20KB")
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    copy = factor * load_file(folder / index[embedding])[embedding]
    shard = folder / index[head]
    save_file(load_file(shard) | {head: copy}, shard, metadata={"format": "pt"})
    edit_config(folder, tie_word_embeddings=True)
    write_merged(folder, tmp_path / "out", {}, 1.0)
    model, found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found.values())
    assert torch.equal(model.lm_head.weight, copy)
    assert Checkpoint(tmp_path / "out").tied == (factor == 1)
    assert model.config.tie_word_embeddings == (factor == 1)


def test_padded_units_stay_absent(llama, examples, tmp_path):
    """Trained for real: columns of zeros get no change, and rows whose output nobody reads neither."""
    from compressor.recovery.data import RecoveryData
    from compressor.recovery.training import Training, train

    checkpoint = Checkpoint(llama)
    plan = allocate(score(checkpoint, "random"), checkpoint, Target("keep", 0.7), protect=[0])
    write(checkpoint, plan, tmp_path / "padded", layout="padded")
    recovery = RecoveryConfig("lora", steps=4, batch=4, learning_rate=1e-2)
    model = load_adapted(tmp_path / "padded", recovery, CPU, "auto", 0)
    data = RecoveryData(examples, examples[:1])
    train(model, Training(recovery, data), tmp_path / "state")
    write_merged(tmp_path / "padded", tmp_path / "out", adapters(model), 2.0)
    before, after = (load_file(tmp_path / d / SINGLE) for d in ("padded", "out"))
    zeros = {name: t == 0 for name, t in before.items() if (t == 0).any()}
    assert len(zeros) >= 2 * len(checkpoint.family.projections())
    for name, absent in zeros.items():
        assert torch.equal(absent, after[name] == 0), name
        assert not torch.equal(before[name], after[name])


def test_half_weights_are_held_in_float32_on_a_cpu(llama, tmp_path):
    source = shutil.copytree(llama, tmp_path / "source")
    save_file(
        {n: t.to(torch.bfloat16) for n, t in load_file(source / SINGLE).items()},
        source / SINGLE,
        metadata={"format": "pt"},
    )
    assert next(adapted(source).parameters()).dtype == torch.float32
    assert next(adapted(source, asked="bfloat16").parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("stored", "on_cpu", "asked", "held", "computed"),
    [
        ("bfloat16", True, "auto", "float32", "float32"),
        ("bfloat16", True, "bfloat16", "bfloat16", "bfloat16"),
        ("float32", True, "bfloat16", "float32", "bfloat16"),
        ("bfloat16", False, "auto", "bfloat16", "bfloat16"),
        ("float16", False, "auto", "float16", "bfloat16"),
        ("float32", False, "auto", "float32", "bfloat16"),
        ("bfloat16", False, "float32", "float32", "float32"),
    ],
)
def test_weights_are_held_without_loss(stored, on_cpu, asked, held, computed):
    assert held_dtype(getattr(torch, stored), on_cpu, asked) == getattr(torch, held)
    assert computed_dtype(on_cpu, asked) == getattr(torch, computed)
