"""GLM 4.5 to 4.7: grouped queries, and experts as DeepSeek V3 has them."""

from compressor.model.families import grouped
from compressor.model.families.grouped import BIASED
from compressor.model.families.table import GROUPED_ATTENTION, Family

FAMILY = Family(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    attention=GROUPED_ATTENTION,
    # What the class has where a config does not say.
    constants={
        grouped.COUNT: 128,
        grouped.PER_TOKEN: 8,
        grouped.GROUPS: 1,
        grouped.CHOSEN: 1,
        grouped.FIRST: 1,
    },
    **BIASED,
)
