"""OPT: an FFN without a gate, biases, learned positions; its class has hidden / heads channels a head.

OPT-350M is another model: it norms what leaves a sub-layer, and its embedding is narrower than its
stream.
"""

from collections.abc import Mapping

from compressor.model.families.table import GROUPED_ATTENTION, Family, Slice, inward


def unlike(config: Mapping) -> str | None:
    narrow = config.get("word_embed_proj_dim") or config.get("hidden_size")
    if not config.get("do_layer_norm_before", True) or narrow != config.get("hidden_size"):
        return (
            "its blocks norm what leaves a sub-layer (do_layer_norm_before is false), or its embedding "
            f"is {narrow} wide and its stream {config.get('hidden_size')}, as in OPT-350M; give an OPT "
            "of another size."
        )
    return None


FAMILY = Family(
    model_type="opt",
    architecture="OPTForCausalLM",
    ffn=(*inward("fc1", "c"), Slice("fc2.weight", 1, "c")),
    attention=(*GROUPED_ATTENTION[:-1], Slice("self_attn.out_proj.weight", 1, "q")),
    layers="model.decoder.layers",
    embedding="model.decoder.embed_tokens.weight",
    up="fc1",
    gate=None,
    attention_norm="self_attn_layer_norm",
    ffn_norm="final_layer_norm",
    feed_forward=lambda layer, normed: layer.fc2(layer.activation_fn(layer.fc1(normed))),
    spellings={"intermediate_size": "ffn_dim", "hidden_act": "activation_function"},
    constants={"hidden_act": "relu", "tie_word_embeddings": True},
    heads_fixed=True,
    own_widths=False,
    unlike=unlike,
)
