"""Qwen3-Next: Qwen3.5's kinds of attention, and experts with one that every token passes beside them."""

from compressor.model.families import experts, linear
from compressor.model.families.experts import LIKE_QWEN_SHARED, WITH_DENSE
from compressor.model.families.kinds import together
from compressor.model.families.linear import GATED_ATTENTION
from compressor.model.families.table import Family

FAMILY = Family(
    model_type="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    attention=GATED_ATTENTION,
    state=linear.state,
    constants=linear.DEFAULTS,
    norm_offset=1.0,
    foresees=("mtp.", "num_nextn_predict_layers"),
    **WITH_DENSE
    | {
        "experts": LIKE_QWEN_SHARED,
        "kind": together(linear.kind, experts.kind),
        "unlike": lambda config: linear.unlike(config) or experts.unlike(config),
    },
)
