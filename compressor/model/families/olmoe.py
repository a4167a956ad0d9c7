"""OLMoE. The norms of queries and keys span all heads of a block, so that all heads stay."""

from compressor.model.families.experts import MIXTURE
from compressor.model.families.table import GROUPED_ATTENTION, Family

FAMILY = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    attention=GROUPED_ATTENTION,
    couples_heads=lambda config: "the norms of its queries and keys span all of them",
    served_by_division=True,
    **MIXTURE,
)
