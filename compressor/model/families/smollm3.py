"""SmolLM3: Llama's blocks, every fourth of which has no rotary embedding (`no_rope_layers`)."""

from compressor.model.families.table import GATED_FFN, GROUPED_ATTENTION, Family

FAMILY = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    ffn=GATED_FFN,
    attention=GROUPED_ATTENTION,
    constants={"tie_word_embeddings": True, "rope_theta": 2_000_000.0},
)
