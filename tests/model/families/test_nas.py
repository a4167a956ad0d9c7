"""Blocks of their own FFN widths as `block_configs`: written, read again, and refused."""

import json
import re
import subprocess
import sys

import pytest
import torch
from edits import edit_config
from transformers import AutoConfig, AutoModelForCausalLM
from unequal import written

from compressor.analysis.inspection import inspect
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.families.configuration_nas import NasConfig, ffn_width
from compressor.model.families.nas import ARCHITECTURE, KEY, block_entries, llama_config
from compressor.model.per_layer import NAS_CODE, may_run_code, ships_own_code
from compressor.planning.plan import Plan
from compressor.verification.child import verify_here
from compressor.writing.cuts import write

WIDTHS = (20, 48, 32)


def plan_of(heads=(0, 2, 3), widths=WIDTHS) -> Plan:
    return Plan([{"attention": [*heads], "ffn": [*range(w)]} for w in widths], {"scores": {}})


@pytest.fixture
def folder(llama, tmp_path):
    return written(llama, tmp_path / "nas", plan_of(), "nas")


def test_it_says_its_widths(folder, llama):
    config = json.loads((folder / "config.json").read_text())
    assert [b["ffn"]["intermediate_size"] for b in config[KEY]] == [*WIDTHS]
    assert {b["attention"]["n_heads_in_group"] for b in config[KEY]} == {2}
    assert config["architectures"] == [ARCHITECTURE] and "per_layer_config" not in config
    assert config["num_attention_heads"] == 6 and config["head_dim"] == 4
    source = Checkpoint(folder)
    assert [u["ffn"] for u in source.block_units] == [*WIDTHS]
    assert source.notes == Checkpoint(llama).notes
    assert verify_here(folder, llama)["logits_difference"] <= 1e-5


def test_vllm_reads_what_transformers_made_of_it(folder):
    """The attributes that vLLM's class asks for."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    for block, width in zip(config.block_configs, WIDTHS, strict=True):
        assert not block.attention.no_op and not block.ffn.no_op
        assert config.num_attention_heads // block.attention.n_heads_in_group == 3
        assert not hasattr(block.ffn, "ffn_mult") and block.ffn.intermediate_size == width
    again = type(config).from_dict(config.to_dict())
    assert again.block_configs == config.block_configs and not config.sliding_window


def test_without_its_code_it_does_not_load(folder):
    for loader in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="trust_remote_code"):
            loader.from_pretrained(folder, trust_remote_code=False)


def test_the_plugin_needs_no_code_of_the_folder(folder, tmp_path):
    lines = (
        "from importlib.metadata import entry_points",
        "from transformers import AutoConfig",
        "(point,) = (p for p in entry_points(group='vllm.general_plugins') if p.name == 'compressor')",
        "point.load()(); point.load()()",
        f"read = AutoConfig.from_pretrained({str(folder)!r}, trust_remote_code=False)",
        "print([block.ffn.intermediate_size for block in read.block_configs])",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    # Not from here, where metadata of an older build may lie.
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == str([*WIDTHS]), done.stderr


def test_a_changed_file_is_not_run(folder):
    assert ships_own_code(folder)
    answers = {row["target"]: row["loads"] for row in inspect(folder)["loads"]}
    assert answers["vLLM, tensor parallel 1"] is True and inspect(folder)["layout"] == "nas"
    assert answers["vLLM, tensor parallel 4"] is False
    with (folder / NAS_CODE[0].name).open("a") as file:
        file.write("#")
    with pytest.raises(InputError, match="so it is not run"):
        may_run_code(folder)
    answers = {row["target"]: row["loads"] for row in inspect(folder)["loads"]}
    assert answers["vLLM, tensor parallel 1"] is None


def test_it_is_cut_again_and_becomes_uniform(folder, tmp_path):
    source = Checkpoint(folder)
    same = Plan([{"attention": [0, 1], "ffn": [*range(16)]}] * 3, {"scores": {}})
    write(source, same, tmp_path / "uniform", "nas")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "uniform")
    assert type(model).__name__ == "MistralForCausalLM"  # 32 is no multiple of 6 heads
    again = written(folder, tmp_path / "again", plan_of((0, 1), (8, 40, 30)), "nas")
    assert [u["ffn"] for u in Checkpoint(again).block_units] == [8, 40, 30]
    assert verify_here(again, folder)["logits_difference"] <= 1e-5


@pytest.mark.parametrize("hidden", [64, 576, 640, 2048, 4096, 5120, 8192])
def test_every_multiple_of_256_comes_back(hidden):
    widths = [*range(256, 4 * hidden + 257, 256)]
    for entry, width in zip(block_entries(widths, 1, hidden), widths, strict=True):
        assert ffn_width(entry["ffn"], hidden) == width and "intermediate_size" not in entry["ffn"]
    mixed = block_entries([256, 300], 1, hidden)
    assert [b["ffn"]["intermediate_size"] for b in mixed] == [256, 300]


def test_biases_of_qwen2_stay(make_checkpoint, tmp_path):
    source = make_checkpoint(tmp_path / "source", "qwen2")
    out = written(source, tmp_path / "out", plan_of((0, 1, 2, 3)), "nas")
    assert verify_here(out, source)["logits_difference"] <= 1e-5
    config = json.loads((out / "config.json").read_text())
    assert config["attention_bias"] and not config["mlp_bias"]
    names = Checkpoint(out).block_tensors(0)
    assert "self_attn.o_proj.bias" in names


def test_phi3_is_taken_apart(make_checkpoint, tmp_path):
    source = make_checkpoint(tmp_path / "source", "phi3")
    out = written(source, tmp_path / "out", plan_of(), "nas")
    assert verify_here(out, source)["logits_difference"] <= 1e-5
    names = Checkpoint(out).block_tensors(0)
    assert "self_attn.k_proj.weight" in names and "mlp.gate_up_proj.weight" not in names
    again = written(out, tmp_path / "again", plan_of((1,), (8, 40, 30)), "nas")
    assert verify_here(again, out)["logits_difference"] <= 1e-5


@pytest.mark.parametrize("heads", [(0, 1, 2), (0, 1, 2, 3)])
def test_other_containers_say_what_llama_leaves_open(make_checkpoint, tmp_path, heads):
    """Mistral's class has other defaults for what a config leaves out."""
    source = make_checkpoint(tmp_path / "source", "mistral", sliding_window=None)
    edit_config(source, max_position_embeddings=...)
    out = written(source, tmp_path / "out", plan_of(heads), "nas")
    assert Checkpoint(out).positions == Checkpoint(source).positions
    assert verify_here(out, source)["logits_difference"] <= 1e-5


@pytest.mark.parametrize(
    ("family", "sizes", "words"),
    [
        ("mistral", {"sliding_window": 5}, "attend to 5 tokens"),
        ("llama", {"hidden_act": "gelu"}, "not gelu"),
        ("qwen3", {}, "not for qwen3"),
        ("phi3", {"partial_rotary_factor": 0.5}, "rotary embedding"),
    ],
)
def test_models_that_its_class_does_not_compute(make_checkpoint, tmp_path, family, sizes, words):
    source = make_checkpoint(tmp_path / "source", family, **sizes)
    with pytest.raises(InputError, match=rf"nas layout.*{words}|{words}.*nas layout"):
        write(Checkpoint(source), plan_of(), tmp_path / "out", "nas")
    assert not (tmp_path / "out").exists()


def test_a_plan_with_other_groups_is_refused(llama, tmp_path):
    plan = plan_of()
    plan.blocks[1]["attention"] = [1]
    with pytest.raises(InputError, match=r"leaves 1 to 3 KV groups .* nas layout"):
        write(Checkpoint(llama), plan, tmp_path / "out", "nas")


def edited(config: dict, block=None, **changes) -> dict:
    config = json.loads(json.dumps(config)) | changes
    for part, values in (block or {}).items():
        config[KEY][1][part] |= values
    return config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({KEY: None}, "has a list of 3 blocks in block_configs"),
        ({KEY: [{}]}, "has a list of 3 blocks"),
        ({KEY: [{}, {}, {}]}, "says of block 0 {}; it needs attention"),
        ({KEY: ["x"] * 3}, "says of block 0 'x'"),
        ({"block": {"attention": {"no_op": True}}}, "gives block 1 no_op"),
        ({"block": {"ffn": {"replace_with_linear": True}}}, "gives block 1 replace_with_linear"),
        ({"block": {"attention": {"n_heads_in_group": 1}}}, "have 1 and 2 query heads"),
        ({"block": {"attention": {"n_heads_in_group": None}}}, "widths are positive numbers"),
        ({"block": {"ffn": {"intermediate_size": -8}}}, "widths are positive numbers"),
        ({"block": {"ffn": {"ffn_mult": "x"}}}, "it needs attention"),
    ],
    ids=str,
)
def test_block_configs_that_cannot_be_read(folder, changes, words):
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(InputError, match=re.escape(words)):
        llama_config(edited(config, **changes))
    (folder / "config.json").write_text(json.dumps(edited(config, **changes)))
    with pytest.raises(InputError, match=re.escape(words)):
        Checkpoint(folder)
    assert any(words in problem for problem in inspect(folder)["problems"])


def test_the_config_bears_a_copy_and_a_pickle(folder):
    import copy
    import pickle

    config = NasConfig.from_pretrained(folder)
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other.block_configs[0].ffn.intermediate_size == WIDTHS[0]
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert model(torch.tensor([[1, 5, 6]])).logits.isfinite().all()
