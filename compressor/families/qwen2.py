"""Qwen2 and Qwen2.5: biases on q, k and v, cut with their heads."""

from compressor.families.table import GATED_FFN, GROUPED_ATTENTION, Family

FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    ffn=GATED_FFN,
    attention=GROUPED_ATTENTION,
)
