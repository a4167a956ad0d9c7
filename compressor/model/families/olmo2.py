"""OLMo 2: both parts read the stream itself, and what they give is normed before it is added.

The norms of queries and keys span all heads of a block, so that all heads stay.
"""

from compressor.model.families.table import GATED_FFN, GROUPED_ATTENTION, Family

FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    ffn=GATED_FFN,
    attention=GROUPED_ATTENTION,
    attention_norm=None,
    ffn_norm=None,
    post_norms={"attention": "post_attention_layernorm", "ffn": "post_feedforward_layernorm"},
    couples_heads=lambda config: "the norms of its queries and keys span all of them",
)
