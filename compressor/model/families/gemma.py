"""Gemma 1 and CodeGemma: Llama's blocks with a tanh GELU; weights of norms are what they add to one."""

from compressor.model.families.table import GATED_FFN, GROUPED_ATTENTION, Family

FAMILY = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    ffn=GATED_FFN,
    attention=GROUPED_ATTENTION,
    norm_offset=1.0,
    embedded_by_width=True,
    constants={"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 256},
)
