"""Mistral 7B and others of the type `mistral`: grouped queries, no biases, any head count."""

from compressor.model.families.table import GATED_FFN, GROUPED_ATTENTION, Family

FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    ffn=GATED_FFN,
    attention=GROUPED_ATTENTION,
    llama_like=True,
)
