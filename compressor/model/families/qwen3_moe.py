"""Qwen3-MoE. transformers 5 calls the number of experts otherwise than the hub's files do."""

from compressor.model.families.experts import WITH_DENSE
from compressor.model.families.table import GROUPED_ATTENTION, Family

FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    attention=GROUPED_ATTENTION,
    spellings={"num_experts": "num_local_experts"},
    **WITH_DENSE,
)
