"""Qwen3.5, the text model: three of four blocks have linear attention, which stays whole.

In the others every query head is followed by as many gates, by which what the head gives is multiplied;
both go with the head. Norms add one to their weights, but for the one behind linear attention.
"""

from compressor.model.families import linear
from compressor.model.families.linear import GATED_ATTENTION
from compressor.model.families.table import GATED_FFN, Family

FAMILY = Family(
    model_type="qwen3_5_text",
    architecture="Qwen3_5ForCausalLM",
    ffn=GATED_FFN,
    attention=GATED_ATTENTION,
    kind=linear.kind,
    state=linear.state,
    unlike=linear.unlike,
    constants=linear.DEFAULTS,
    norm_offset=1.0,
    own_widths=False,
    foresees=("mtp.", "mtp_num_hidden_layers"),
)
