"""Mixtral: experts under names of their own, w1 the gate, w3 up, w2 down."""

from compressor.model.families.experts import DOWN, GATE_UP, MIXTURE, Experts
from compressor.model.families.table import GROUPED_ATTENTION, Family

EXPERT = "block_sparse_moe.experts.{}."

FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    attention=GROUPED_ATTENTION,
    spellings={"num_experts": "num_local_experts"},
    **MIXTURE
    | {
        "experts": Experts(
            parts={
                GATE_UP: (EXPERT + "w1.weight", EXPERT + "w3.weight"),
                DOWN: (EXPERT + "w2.weight",),
            },
            renamed={"mlp.gate.weight": "block_sparse_moe.gate.weight"},
            counted=("num_local_experts",),
        )
    },
)
