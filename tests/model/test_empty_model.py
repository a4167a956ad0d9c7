"""Tensors are those of the empty model that the config makes, by name and shape."""

import shutil

import pytest
import torch
from edits import edit_config, edit_tensors

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint

BLOCK = "model.layers.1"


@pytest.fixture
def copied(random_family, tmp_path):
    """A copy of a family's checkpoint."""
    return lambda model_type: shutil.copytree(random_family(model_type), tmp_path / model_type)


def test_every_family_has_the_tensors_of_its_class(every_family):
    checkpoint = Checkpoint(every_family)
    assert checkpoint.notes == []


def without(name):
    return lambda tensors: tensors.pop(name)


def added(name, *shape):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


def block_gone(tensors) -> None:
    for name in [name for name in tensors if name.startswith(BLOCK)]:
        del tensors[name]


@pytest.mark.parametrize(
    ("model_type", "change", "message"),
    [
        ("llama", added("v_head.summary.weight", 1, 32), r"holds v_head.summary.weight \[1, 32\]"),
        ("llama", added("score.weight", 2, 32), r"score.weight \[2, 32\], which LlamaForCausalLM"),
        ("llama", added("model.mtp.0.weight", 32, 32), "holds model.mtp.0.weight"),
        ("llama", added(f"{BLOCK}.self_attn.q_proj.bias", 32), r"q_proj.bias \[32\], which"),
        ("llama", without("model.norm.weight"), r"lacks the tensor model.norm.weight \[32\]"),
        ("llama", block_gone, rf"lacks the tensor {BLOCK}\.\S+ \[.*\] and 8 more like it"),
        ("qwen2", without(f"{BLOCK}.self_attn.k_proj.bias"), r"lacks .*k_proj.bias \[24\]"),
        ("qwen3", without(f"{BLOCK}.self_attn.q_norm.weight"), r"lacks .*q_norm.weight \[4\]"),
        ("llama", added("model.norm.weight", 30), r"norm.weight in .* \[30\].*implies \[32\]"),
        (
            "llama",
            added(f"{BLOCK}.input_layernorm.weight", 31),
            r"input_layernorm.weight in .* \[31\], but the config implies \[32\]",
        ),
        (
            "qwen2",
            added("lm_head.weight", 121, 48),
            r"lm_head.weight in .* \[121, 48\], but the config implies \[120, 48\]",
        ),
        ("gpt2", added("wpe.weight", 95, 32), r"wpe.weight in .* \[95, 32\].*implies \[96, 32\]"),
        (
            "gpt2",
            added("h.1.attn.c_attn.weight", 32, 95),
            r"c_attn.weight in .* \[32, 95\].*implies \[32, 96\]",
        ),
    ],
)
def test_tensors_that_the_config_does_not_make(copied, model_type, change, message):
    folder = copied(model_type)
    edit_tensors(folder, change)
    with pytest.raises(InputError, match=message):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 128}, r"embed_tokens.weight in .* \[120, 32\].*implies \[128, 32\]"),
        ({"attention_bias": True}, r"lacks the tensor model.layers.0.self_attn.q_proj.bias \[32\]"),
        ({"num_hidden_layers": 4}, r"lacks the tensor model.layers.3.* and 8 more like it"),
        ({"num_hidden_layers": 0}, "counts 0 blocks"),
        ({"intermediate_size": 50}, r"proj.weight in .*but the config implies .* and 8 more"),
        ({"pad_token_id": 500}, "makes no model: Padding_idx"),
    ],
)
def test_a_config_that_makes_other_tensors(copied, changes, message):
    folder = copied("llama")
    edit_config(folder, **changes)
    with pytest.raises(InputError, match=message):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", f"{BLOCK}.self_attn.rotary_emb.inv_freq"),
        ("llama", "model.rotary_emb.inv_freq"),
        ("gpt2", "h.1.attn.bias"),
        ("gpt2", "h.1.attn.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.1.attention.bias"),
        ("gpt_neox", "gpt_neox.layers.1.attention.masked_bias"),
    ],
)
def test_buffers_of_old_files_are_left_out(copied, model_type, name):
    folder = copied(model_type)
    before = Checkpoint(folder).parameters
    edit_tensors(folder, added(name, 1, 1, 4, 4))
    assert Checkpoint(folder).parameters == before
