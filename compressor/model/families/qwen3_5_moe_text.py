"""Qwen3.5 with experts, the text model: Qwen3-Next's blocks, all of which have experts."""

from compressor.model.families import linear
from compressor.model.families.experts import LIKE_QWEN_SHARED, MIXTURE, too_few
from compressor.model.families.linear import GATED_ATTENTION
from compressor.model.families.table import Family

FAMILY = Family(
    model_type="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    attention=GATED_ATTENTION,
    kind=linear.kind,
    state=linear.state,
    constants=linear.DEFAULTS,
    norm_offset=1.0,
    foresees=("mtp.", "mtp_num_hidden_layers"),
    **MIXTURE
    | {
        "experts": LIKE_QWEN_SHARED,
        "unlike": lambda config: linear.unlike(config) or too_few(config),
    },
)
