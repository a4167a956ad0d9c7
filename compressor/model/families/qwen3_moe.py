"""Qwen3-MoE. transformers 5 calls the number of experts otherwise than version 4 and the hub's files do,
and takes it by either name.
"""

from dataclasses import replace

from compressor.model.families.experts import LIKE_QWEN, WITH_DENSE
from compressor.model.families.table import GROUPED_ATTENTION, Family

FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    attention=GROUPED_ATTENTION,
    spellings={"num_experts": "num_local_experts"},
    **WITH_DENSE | {"experts": replace(LIKE_QWEN, counted=("num_experts", "num_local_experts"))},
)
