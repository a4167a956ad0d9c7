"""Qwen1.5-MoE and Qwen2-MoE: beside the experts one that every token passes, which stays whole."""

from dataclasses import replace

from compressor.model.families.experts import LIKE_QWEN, MIXTURE
from compressor.model.families.table import GROUPED_ATTENTION, Family

FAMILY = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    attention=GROUPED_ATTENTION,
    served_by_division=True,
    **MIXTURE | {"experts": replace(LIKE_QWEN, shared="mlp.shared_expert.down_proj.weight")},
)
