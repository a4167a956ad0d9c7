"""Llama 1 to 3, Vicuna, TinyLlama and others of the type `llama`.

Its config class refuses a hidden size that the number of heads does not divide; the same tensors
then go out as Mistral without a window, which is the same arithmetic.
"""

from compressor.model.families.table import GATED_FFN, GROUPED_ATTENTION, Container, Family

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    ffn=GATED_FFN,
    attention=GROUPED_ATTENTION,
    heads_divide_hidden=True,
    llama_like=True,
    container=Container("mistral", settings={"sliding_window": None}),
)
