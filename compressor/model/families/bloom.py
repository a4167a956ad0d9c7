"""Bloom and Bloomz: q, k and v interleaved head by head, biases, ALiBi, 4 x hidden FFN channels.

transformers' class knows no other widths, so a cut model goes out with the package's own code.
Hub files name tensors from `h.` and `word_embeddings` on, and the settings in two ways.
"""

from collections.abc import Mapping

import torch

from compressor.model.families.table import FOURFOLD_FFN, Family, Slice, inward


def unlike(config: Mapping) -> str | None:
    if config.get("apply_residual_connection_post_layernorm"):
        return (
            "apply_residual_connection_post_layernorm adds the normed stream in place of the stream; "
            "models without it can be cut."
        )
    return None


FAMILY = Family(
    model_type="bloom",
    architecture="BloomForCausalLM",
    ffn=FOURFOLD_FFN,
    attention=(
        *inward("self_attention.query_key_value", "qkv"),
        Slice("self_attention.dense.weight", 1, "q"),
    ),
    layers="transformer.h",
    embedding="transformer.word_embeddings.weight",
    up="mlp.dense_h_to_4h",
    gate=None,
    # Its module adds the stream that it is called with.
    feed_forward=lambda layer, normed: layer.mlp(normed, torch.zeros_like(normed)),
    in_a_tuple=True,
    fit=lambda layer, kept: layer.keep_heads(kept),
    unlike=unlike,
    spellings={
        "hidden_size": "n_embed",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
    },
    constants={"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"},
    ffn_per_hidden=4,
    heads_fixed=True,
    ffn_fixed=True,
    alibi=True,
)
