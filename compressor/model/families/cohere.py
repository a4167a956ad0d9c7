"""Cohere's Command R and Aya: attention and FFN side by side behind one LayerNorm, an own logit scale.

The norms of queries and keys that Command R+ has (`use_qk_norm`) are of all heads, so its heads stay.
"""

from collections.abc import Mapping

from compressor.model.families.table import GATED_FFN, GROUPED_ATTENTION, Family


def couples_heads(config: Mapping) -> str | None:
    return (
        "the norms of its queries and keys are of all heads" if config.get("use_qk_norm") else None
    )


FAMILY = Family(
    model_type="cohere",
    architecture="CohereForCausalLM",
    ffn=GATED_FFN,
    attention=GROUPED_ATTENTION,
    ffn_norm="input_layernorm",
    parallel_key="parallel",  # no config has it: they all are
    couples_heads=couples_heads,
    constants={"tie_word_embeddings": True},
)
