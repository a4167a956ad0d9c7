"""DeepSeek V3, R1, Moonlight and Kimi K2: latent attention, and experts by a sigmoid and a bias."""

from compressor.model.families import grouped, latent
from compressor.model.families.grouped import BIASED
from compressor.model.families.kinds import together
from compressor.model.families.table import Family

FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    attention=latent.OUTPUT,
    latent=latent.numbers,
    # What the class has where a config does not say.
    constants={
        grouped.COUNT: 256,
        grouped.PER_TOKEN: 8,
        grouped.GROUPS: 8,
        grouped.CHOSEN: 4,
        grouped.FIRST: 3,
    },
    **BIASED | {"kind": together(latent.kind, grouped.kind)},
)
