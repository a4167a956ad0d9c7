"""StarCoder 2: grouped queries, LayerNorms, biases everywhere, and an FFN without a gate."""

from compressor.model.families.table import GROUPED_ATTENTION, Family, Slice, inward

FAMILY = Family(
    model_type="starcoder2",
    architecture="Starcoder2ForCausalLM",
    ffn=(*inward("mlp.c_fc", "c"), Slice("mlp.c_proj.weight", 1, "c")),
    attention=GROUPED_ATTENTION,
    up="mlp.c_fc",
    gate=None,
    constants={"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
)
