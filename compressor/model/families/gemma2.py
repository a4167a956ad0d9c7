"""Gemma 2: norms before and after both parts of a block, whose weights are what they add to one.

Every second block has a sliding window. Its config class refuses a hidden size that the number of heads
does not divide, and no other class computes the same.
"""

from compressor.model.families.table import GATED_FFN, GROUPED_ATTENTION, Family

FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    ffn=GATED_FFN,
    attention=GROUPED_ATTENTION,
    ffn_norm="pre_feedforward_layernorm",
    post_norms={"attention": "post_attention_layernorm", "ffn": "post_feedforward_layernorm"},
    norm_offset=1.0,
    embedded_by_width=True,
    spellings={"hidden_act": "hidden_activation"},
    constants={"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 256},
    heads_divide_hidden=True,
    # Its config class reads the number of heads, of unequal blocks too.
    per_layer_settings={"allow_global_per_layer_attribute_access": True},
)
