"""OLMoE. The norms of queries and keys span all heads of a block, so that all heads stay."""

from dataclasses import replace

from compressor.model.families.experts import LIKE_QWEN, MIXTURE
from compressor.model.families.table import GROUPED_ATTENTION, Family

FAMILY = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    attention=GROUPED_ATTENTION,
    couples_heads=lambda config: "the norms of its queries and keys span all of them",
    served_by_division=True,
    **MIXTURE | {"experts": replace(LIKE_QWEN, width_key="intermediate_size")},
)
