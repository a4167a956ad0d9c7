"""Falcon's forms, which a config chooses: the streamed model computes what transformers' does."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.planning.plan import Plan
from compressor.writing.cuts import write

SIZES = {"intermediate_size": 64, "hidden_dropout": 0.0, "attention_dropout": 0.0}
FORMS = {
    "7B": ({"num_kv_heads": 8}, 1, "input_layernorm", True),
    "40B": ({"new_decoder_architecture": True, "num_kv_heads": 2}, 2, "ln_mlp", True),
    "11B": (
        {"new_decoder_architecture": True, "num_kv_heads": 4, "num_ln_in_parallel_attn": 1},
        *(4, "input_layernorm", True),
    ),
    "RW": (
        {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
        *(8, "post_attention_layernorm", False),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form(name, make_checkpoint, tmp_path):
    settings, groups, norm, parallel = FORMS[name]
    folder = make_checkpoint(tmp_path / "model", "falcon", **SIZES | settings)
    source = Checkpoint(folder)
    assert source.units == {"attention": groups, "ffn": 64}
    assert source.family.ffn_norm == norm and source.family.parallel(source.config) is parallel
    ids = torch.arange(4, 16)[None]
    expected = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    (found,) = BlockStream(source).logits([ids])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    cut = [{"attention": [*range(groups)], "ffn": [*range(0, 64, 2)]}] * source.blocks
    assert write(source, Plan(cut), tmp_path / "cut") == "falcon"
    smaller = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    assert smaller.transformer.h[0].mlp.dense_h_to_4h.weight.shape[0] == 32
