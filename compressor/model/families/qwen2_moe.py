"""Qwen1.5-MoE and Qwen2-MoE: beside the experts one that every token passes, which stays whole."""

from compressor.model.families.experts import LIKE_QWEN_SHARED, WITH_DENSE
from compressor.model.families.table import GROUPED_ATTENTION, Family

FAMILY = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    attention=GROUPED_ATTENTION,
    served_by_division=True,
    **WITH_DENSE | {"experts": LIKE_QWEN_SHARED},
)
