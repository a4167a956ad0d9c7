"""Folders of this package and of others: what is said of them, and what loads them."""

import json
import shutil

import pytest
import torch
from edits import edit_config, edit_json, edit_tensors
from jobs import said, stage
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from compressor.analysis.inspection import inspect
from compressor.model.checkpoint import Checkpoint
from compressor.model.tensors import INDEX, SINGLE

NO_TOKENIZER = "tokenizer: it has no class TokenizersBackend"
OLDER_SAYS = {
    "cohere": "it would read rope_theta 10000, the model's is 500000",
    "gpt_neox": "it would read rotary_pct 0.25, the model's is 0.5",
}
CONVERTED = {"bloom", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "opt"}
CONVERTED |= {"phi3", "qwen2", "qwen3"}  # that llama.cpp's converter was tried with


def narrow_ffn(tensors, block, channels):
    for name in ("gate_proj", "up_proj"):
        key = f"model.layers.{block}.mlp.{name}.weight"
        tensors[key] = tensors[key][:channels].clone()
    key = f"model.layers.{block}.mlp.down_proj.weight"
    tensors[key] = tensors[key][:, :channels].clone()


def loads(result, target) -> tuple[bool | None, str]:
    return next((r["loads"], r["because"]) for r in result["loads"] if target in r["target"])


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


def test_every_family(any_family):
    result, checkpoint = inspect(any_family), Checkpoint(any_family)
    assert result["family"] == result["model_type"] == checkpoint.family.model_type
    assert result["container"] == checkpoint.family.architecture
    assert result["layout"] == "uniform" and result["problems"] == []
    assert (result["parameters"], result["bytes"]) == (checkpoint.parameters, checkpoint.bytes)
    assert (result["dtypes"], result["tied"]) == ({"F32": checkpoint.parameters}, checkpoint.tied)
    assert len(result["blocks"]) == checkpoint.blocks
    for row in result["blocks"]:
        assert (row["heads"], row["kv_heads"]) == (checkpoint.heads, checkpoint.kv_heads)
        assert row["ffn"] == checkpoint.units["ffn"]
    for target in ("(installed)", "parallel 1", "parallel 2", "parallel 4"):
        assert loads(result, target)[0], target
    assert loads(result, "parallel 8")[0] == (checkpoint.heads % 8 == 0)
    assert loads(result, "4.57") == (False, OLDER_SAYS.get(result["family"], NO_TOKENIZER))
    answer, because = loads(result, "k-quants")
    assert answer is (False if result["family"] in CONVERTED else None)
    if checkpoint.family.model_type == "opt":
        assert because == "llama.cpp's converter has no OPTForCausalLM"


def test_blocks_of_different_widths(copy):
    edit_tensors(copy, lambda tensors: narrow_ffn(tensors, 1, 20))
    result = inspect(copy)
    assert result["layout"] == "per-layer"
    assert [row["ffn"] for row in result["blocks"]] == [48, 20, 48]
    answer, because = loads(result, "(installed)")
    assert answer is False and "is [32, 20], its config makes [32, 48]" in because
    for target in ("4.57", "parallel 1", "group 128", "k-quants"):
        assert loads(result, target)[0] is False, target
    assert "2 different widths" in loads(result, "parallel 1")[1]
    assert result["problems"] == [
        "The config says intermediate_size 48, the tensors 20 to 48; the tensors are believed."
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"intermediate_size": 64}, "intermediate_size 64, the tensors 48"),
        ({"num_key_value_heads": 8}, "num_key_value_heads 8, the tensors 4"),
        ({"num_attention_heads": 4}, "num_attention_heads 4, the tensors 8"),
        ({"vocab_size": 99}, "vocab_size 99, the tensors 120"),
        ({"head_dim": 3}, "16 channels of attention are not whole heads of 3"),
    ],
)
def test_config_and_tensors_that_disagree(copy, changes, problem):
    edit_config(copy, **changes)
    result = inspect(copy)
    assert any(problem in p and "tensors are believed" in p for p in result["problems"])
    assert result["blocks"][0]["ffn"] == 48
    assert loads(result, "(installed)")[0] is False
    assert loads(result, "4.57")[0] is False


@pytest.mark.parametrize(
    ("layers", "because"), [(4, "would be random: model.layers.3."), (2, "are left out")]
)
def test_dropped_and_invented_blocks(copy, layers, because):
    edit_config(copy, num_hidden_layers=layers)
    result = inspect(copy)
    answer, found = loads(result, "(installed)")
    assert answer is False and because in found
    assert f"num_hidden_layers {layers}, the tensors 3" in result["problems"][0]


def test_head_that_nobody_ties(copy):
    edit_tensors(copy, lambda tensors: tensors.pop("lm_head.weight"))
    assert "the config does not tie it" in inspect(copy)["problems"][0]


def test_heads_that_stock_llama_refuses(make_checkpoint, tmp_path):
    sizes = {"num_attention_heads": 6, "num_key_value_heads": 3}
    folder = make_checkpoint(tmp_path / "six", "mistral", **sizes)
    assert loads(inspect(folder), "(installed)")[0]
    edit_config(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    answer, because = loads(inspect(folder), "(installed)")
    assert answer is False and "hidden size (32)" in because and "(6)" in because
    answer, because = loads(inspect(folder), "parallel 1")
    assert answer is False and because.startswith("it reads the config as transformers does")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert loads(inspect(folder), "4.57")[0]
    edit_tensors(folder, lambda tensors: tensors.pop("model.norm.weight"))
    assert loads(inspect(folder), "4.57") == (
        False,
        "1 tensor(s) would be random: model.norm.weight",
    )


def test_padded_layout_is_known_from_the_record(copy):
    (copy / "compression.json").write_text(json.dumps({"layout": "padded"}))
    assert inspect(copy)["layout"] == "padded"


def test_another_type_is_shown_by_its_shapes(tmp_path):
    sizes = {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 50, "n_positions": 16}
    sizes |= {"rotary_dim": 4}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gptj", **sizes)).save_pretrained(
        tmp_path
    )
    result = inspect(tmp_path)
    assert result["family"] is None and result["layout"] is None
    assert [row["shapes"]["mlp.fc_in.weight"] for row in result["blocks"]] == [[128, 32]] * 2
    assert "'gptj' has no table" in result["problems"][0]
    assert "the weights load, the tokenizer does not: " in loads(result, "(ins")[1]
    assert loads(result, "4.57") == (None, "the widths are not known")


def test_quantised_weights(copy):
    edit_config(copy, quantization_config={"quant_method": "gptq", "bits": 4})
    result = inspect(copy)
    assert result["quantization"] == "gptq" and result["layout"] is None
    assert "shapes" in result["blocks"][0]


def test_code_in_the_folder_is_not_run(copy, tmp_path):
    (copy / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    edit_config(copy, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}, model_type="evil")
    answer, because = loads(inspect(copy), "(installed)")
    assert answer is False and because
    assert not (tmp_path / "ran").exists()


def test_pickles_are_not_opened(copy):
    tensors = load_file(copy / SINGLE)
    (copy / SINGLE).unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    result = inspect(copy)
    assert "pickles (pytorch_model.bin)" in result["problems"][0]
    assert loads(result, "(installed)")[0] is False
    assert result["parameters"] == 0 and result["blocks"] == []


def test_half_a_download(make_checkpoint, tmp_path):
    folder = make_checkpoint(tmp_path / "sharded", max_shard_size="20KB")
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-10])
    result = inspect(folder)
    shown = " ".join(result["problems"])
    assert f"{first.name} is missing" in shown and f"{second.name} is truncated" in shown
    assert f"{INDEX} names" in shown
    assert loads(result, "(installed)")[0] is False


@pytest.mark.parametrize(
    ("content", "problem"), [("{", "is not valid JSON"), ("[]", "is no JSON object")]
)
def test_broken_config(copy, content, problem):
    (copy / "config.json").write_text(content)
    result = inspect(copy)
    assert problem in result["problems"][0]
    assert result["parameters"] > 0 and len(result["blocks"]) == 3


def test_files_of_another_name(copy):
    (copy / SINGLE).rename(copy / "weights.safetensors")
    result = inspect(copy)
    assert "weights.safetensors is read here" in " ".join(result["problems"])
    assert result["blocks"][0]["ffn"] == 48 and loads(result, "(installed)")[0] is False


def test_missing_matrix(copy):
    edit_tensors(copy, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
    result = inspect(copy)
    assert "lacks the matrix mlp.up_proj.weight" in " ".join(result["problems"])
    assert "would be random" in loads(result, "(installed)")[1]


# -- the command ----------------------------------------------------------------------------------


def test_command(llama, capsys):
    assert stage("inspect", llama, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["blocks"][0] == {
        "block": 0, "parameters": 7744, "heads": 8, "kv_heads": 4, "ffn": 48,
    }  # fmt: skip
    assert stage("inspect", llama) == 0
    shown = capsys.readouterr().out
    for expected in ("layout uniform", "0-2", "tensor parallel 8", "32 mod 128 is 32"):
        assert expected in shown


def test_command_shows_shapes_and_problems(copy, capsys):
    edit_config(copy, model_type="novel")
    assert stage("inspect", copy) == 0
    shown = capsys.readouterr().out
    assert "mlp.down_proj.weight 32 x 48" in shown and "Problem: The model type 'novel'" in shown


def test_no_model_at_all(tmp_path, capsys):
    assert stage("inspect", tmp_path) == 2
    assert "is no checkpoint" in said(capsys)
    assert stage("inspect", tmp_path / "nowhere") == 2
    assert "no folder" in said(capsys)
