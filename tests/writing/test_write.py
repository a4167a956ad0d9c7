"""What is written: cut tensors, patched config, shards, containers, layouts."""

import json
import shutil
from contextlib import ExitStack

import pytest
import torch
from jobs import same_bytes
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compressor.config.target import Target
from compressor.errors import InputError, MachineError
from compressor.model.checkpoint import Checkpoint
from compressor.model.disk import check_space
from compressor.model.per_layer import has_uniform
from compressor.model.tensors import INDEX
from compressor.model.units import BlockGeometry, only_units
from compressor.planning.allocation import allocate
from compressor.planning.plan import Plan
from compressor.scoring.score import score
from compressor.writing.containers import container_notes, patched_config, zeros_of
from compressor.writing.cuts import write


def plan_for(checkpoint, keep=0.7, **options) -> Plan:
    return allocate(score(checkpoint, "random"), checkpoint, Target("keep", keep), **options)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(3, 23)[None]).logits


def masked_logits(checkpoint: Checkpoint, plan: Plan) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path)
    with ExitStack() as masks:
        layers = model.get_submodule(checkpoint.family.layers)
        for block, (layer, kept) in enumerate(zip(layers, plan.blocks, strict=True)):
            masks.enter_context(only_units(layer, BlockGeometry.of(checkpoint, block), kept))
        return logits(model)


@pytest.mark.parametrize("layout", ["uniform", "padded"])
def test_result_loads_and_computes_what_the_masked_source_does(any_kinds, tmp_path, layout):
    checkpoint = Checkpoint(any_kinds)
    if layout == "uniform" and not has_uniform(checkpoint.family):
        layout = "per-layer"
    plan = plan_for(checkpoint, protect=[1] if layout == "padded" else [])
    container = write(checkpoint, plan, tmp_path / "out", layout)
    model, found = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, trust_remote_code=layout == "per-layer"
    )
    assert not any(found.values())
    torch.testing.assert_close(logits(model), masked_logits(checkpoint, plan), rtol=1e-4, atol=1e-5)
    zeros = checkpoint.blocks * sum(t.numel() for t in zeros_of(checkpoint, container).values())
    parameters = checkpoint.parameters if layout == "padded" else plan.about["parameters"]
    assert Checkpoint(tmp_path / "out").parameters == parameters + zeros


def test_uniform_refuses_blocks_of_different_widths(llama, tmp_path):
    checkpoint = Checkpoint(llama)
    with pytest.raises(InputError, match="different widths"):
        write(checkpoint, plan_for(checkpoint, protect=[0]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_and_index(llama, tmp_path):
    checkpoint = Checkpoint(llama)
    plan = plan_for(checkpoint)
    write(checkpoint, plan, tmp_path / "one")
    write(checkpoint, plan, tmp_path / "many", shard_bytes=20_000)
    index = json.loads((tmp_path / "many" / INDEX).read_text())
    one = load_file(tmp_path / "one" / "model.safetensors")
    many = {}
    for file in set(index["weight_map"].values()):
        assert (tmp_path / "many" / file).stat().st_size < 24_000
        many |= load_file(tmp_path / "many" / file)
    assert one.keys() == many.keys() == index["weight_map"].keys()
    assert all(torch.equal(one[n], many[n]) for n in one)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in one.values())
    assert index["metadata"]["total_parameters"] == sum(t.numel() for t in one.values())
    AutoModelForCausalLM.from_pretrained(tmp_path / "many")


def test_mixed_dtypes_and_odd_sizes_stay_aligned(make_checkpoint, tmp_path):
    folder = make_checkpoint(tmp_path / "m", dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if "norm" in name:
            tensors[name] = tensors[name].float()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint(folder)
    write(checkpoint, plan_for(checkpoint), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(written[n].dtype == t.dtype for n, t in tensors.items())


@pytest.mark.parametrize(("groups", "expected"), [(4, "llama"), (3, "mistral"), (2, "llama")])
def test_container_follows_the_head_count(llama, tmp_path, groups, expected):
    checkpoint = Checkpoint(llama)
    plan = Plan([{"attention": [*range(groups)], "ffn": [*range(24)]}] * 3)
    assert write(checkpoint, plan, tmp_path / "out") == expected
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == expected
    if expected == "mistral":
        assert config["architectures"] == ["MistralForCausalLM"]
        assert config["sliding_window"] is None
        assert int(config["transformers_version"].split(".")[0]) >= 5
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(model), masked_logits(checkpoint, plan), rtol=1e-4, atol=1e-5)


def test_container_can_be_forced_or_refused(llama, tmp_path):
    checkpoint = Checkpoint(llama)
    plan = Plan([{"attention": [0, 1, 3], "ffn": [*range(24)]}] * 3)
    with pytest.raises(InputError, match="llama refuses 6 heads"):
        write(checkpoint, plan, tmp_path / "a", container="llama")
    with pytest.raises(InputError, match="cannot be written as 'qwen2'"):
        write(checkpoint, plan, tmp_path / "b", container="qwen2")
    assert write(checkpoint, plan, tmp_path / "c", container="mistral") == "mistral"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_type": "default"}),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0},
        ),
        (
            {"rope_parameters": {"rope_theta": 7.0, "rope_type": "dynamic", "factor": 4.0}},
            {"rope_theta": 7.0, "rope_type": "dynamic", "factor": 4.0},
        ),
    ],
)
def test_config_keeps_both_spellings(llama, given, expected):
    checkpoint = Checkpoint(llama)
    for name in ("rope_theta", "rope_parameters", "rope_scaling"):
        checkpoint.written_config.pop(name, None)
    checkpoint.written_config |= given | {"a_key_of_the_user": [1, 2]}
    config = patched_config(checkpoint, {"attention": 2, "ffn": 24}, "llama")
    assert config["rope_parameters"] == expected
    assert config["rope_theta"] == expected["rope_theta"]
    if expected["rope_type"] != "default":
        scaling = config["rope_scaling"]
        assert scaling.get("rope_type", scaling.get("type")) == expected["rope_type"]
        assert scaling["factor"] == expected["factor"]
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (4, 2)
    assert (config["head_dim"], config["intermediate_size"]) == (4, 24)
    assert config["a_key_of_the_user"] == [1, 2]
    given = checkpoint.written_config
    assert list(config)[: len(given)] == list(given)


def test_side_files_are_copied_and_other_weights_are_not(llama, tmp_path):
    source = shutil.copytree(llama, tmp_path / "source")
    (source / "LICENSE").write_bytes(b"terms\r\n")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "pytorch_model.bin").write_bytes(b"old")
    checkpoint = Checkpoint(source)
    write(checkpoint, plan_for(checkpoint), tmp_path / "out")
    for name in ("LICENSE", "chat_template.jinja", "tokenizer.json", "generation_config.json"):
        assert same_bytes(tmp_path / "out" / name, source / name)
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()


def test_what_is_said_of_a_family_without_a_container(random_family, tmp_path):
    """A Phi-3 of blocks of their own FFN widths."""
    source = Checkpoint(random_family("phi3"))
    blocks = [{"attention": [0, 1], "ffn": [*range(width)]} for width in (48, 16, 20)]
    write(source, Plan(blocks), tmp_path / "out", "nas")
    (note,) = container_notes(source, Checkpoint(tmp_path / "out"), "nas")
    assert note.startswith("Written as nemotron-nas") and "zeros" not in note


def test_same_plan_same_bytes(llama, tmp_path):
    checkpoint = Checkpoint(llama)
    for name in "ab":
        write(checkpoint, plan_for(checkpoint), tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert same_bytes(file, tmp_path / "b" / file.name)


def test_full_disk_is_refused_before_writing(tmp_path):
    with pytest.raises(MachineError, match="GB free"):
        check_space(tmp_path / "not" / "yet", 10**18)
