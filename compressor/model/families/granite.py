"""Granite 3 and 4's dense models: Llama's blocks, whose parts add a multiple of what they compute.

Multipliers of the embedding, of the attention's scores and of the logits are in the modules.
"""

from compressor.model.families.table import GATED_FFN, GROUPED_ATTENTION, Family

FAMILY = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    ffn=GATED_FFN,
    attention=GROUPED_ATTENTION,
    added_times="residual_multiplier",
)
