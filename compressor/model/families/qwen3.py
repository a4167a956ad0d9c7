"""Qwen3: the norms of queries and keys span one head and are left alone."""

from compressor.model.families.table import GATED_FFN, GROUPED_ATTENTION, Family

FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    ffn=GATED_FFN,
    attention=GROUPED_ATTENTION,
)
