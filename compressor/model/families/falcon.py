"""Falcon 7B, 40B, 180B, Falcon 2 and the RW models: fused q, k and v, an FFN without a gate.

A config says which of four forms its blocks have: one norm for attention and FFN side by side, or one of
each; or one after the other; and one KV head for all queries, some, or as many. The class has hidden /
heads channels a head, always, so all heads stay. (Falcon 3 is of the type `llama`.)
"""

from collections.abc import Mapping

from compressor.model.families.table import FOURFOLD_FFN, Family, Slice, inward

CONSTANTS = {"hidden_act": "gelu", "tie_word_embeddings": True}


def form(config: Mapping) -> dict:
    grouped = config.get("new_decoder_architecture")
    if grouped:
        fields: dict = {"kv_heads_key": "num_kv_heads"}
        if config.get("num_ln_in_parallel_attn") in (None, 2):
            fields |= {"attention_norm": "ln_attn", "ffn_norm": "ln_mlp"}
        return fields
    # The configs of 7B say 71 KV heads besides, which nothing reads.
    fields = {"constants": CONSTANTS | {"kv_heads": 1}} if config.get("multi_query", True) else {}
    if not config.get("parallel_attn", True):
        fields |= {"ffn_norm": "post_attention_layernorm", "parallel_key": None}
    return fields


FAMILY = Family(
    model_type="falcon",
    architecture="FalconForCausalLM",
    ffn=FOURFOLD_FFN,
    attention=(
        *inward("self_attention.query_key_value", "qkv"),
        Slice("self_attention.dense.weight", 1, "q"),
    ),
    layers="transformer.h",
    embedding="transformer.word_embeddings.weight",
    up="mlp.dense_h_to_4h",
    gate=None,
    ffn_norm="input_layernorm",
    parallel_key="parallel",  # no config has it
    unpacked="FalconLinear",
    in_a_tuple=True,
    form=form,
    kv_heads_key="kv_heads",
    spellings={"intermediate_size": "ffn_hidden_size", "hidden_act": "activation"},
    constants=CONSTANTS,
    ffn_per_hidden=4,
    served_ffn=4,
    heads_fixed=True,
    own_widths=False,
)
