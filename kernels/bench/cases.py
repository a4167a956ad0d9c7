"""Every case that is timed: op -> how to build it, at which shapes, beside which baselines."""

from compressor.kernels.bench.activation_cases import (
    gate_case,
    gated_swiglu_case,
    moments_case,
    swiglu_moments_case,
)
from compressor.kernels.bench.case import Family
from compressor.kernels.bench.weight_cases import (
    besa_mask_case,
    colsum_case,
    compact_case,
    compact_rows_case,
    eliminate_case,
    rank_case,
    taylor_case,
)

MATRICES = {
    "cuda": [
        (1024, 4096),
        (4096, 4096),
        (11008, 4096),
        (4096, 11008),
        (14336, 4096),
        (8192, 8192),
        (28672, 8192),
    ],
    "cpu": [(4096, 4096), (4096, 11008)],
}
ACTIVATIONS = {  # [tokens, channels]
    "cuda": [(2048, 4096), (16384, 4096), (16384, 11008), (16384, 28672)],
    "cpu": [(2048, 4096), (2048, 11008)],
}

CHANNELS = {  # [channels, of which so many go]
    "cuda": [(4096, 128), (11008, 128), (28672, 128)],
    "cpu": [(1536, 128), (4096, 128)],
}

# torch.compile is a baseline on GPUs; on a CPU it compiles for longer than everything else runs.
PLAIN = {"cuda": ("ours", "eager", "compile"), "cpu": ("ours", "eager")}
PUBLISHED = {device: (*providers, "published") for device, providers in PLAIN.items()}

CASES = {
    "colsum": Family(colsum_case, MATRICES, PLAIN),
    "taylor": Family(taylor_case, MATRICES, PLAIN),
    "moments": Family(moments_case, ACTIVATIONS, PLAIN),
    "swiglu_moments": Family(swiglu_moments_case, ACTIVATIONS, PLAIN),
    "gated_swiglu": Family(gated_swiglu_case, ACTIVATIONS, PLAIN),
    "gate": Family(gate_case, ACTIVATIONS, PLAIN),
    "compact": Family(compact_case, MATRICES, PLAIN),
    "compact_rows": Family(compact_rows_case, MATRICES, PLAIN),
    "eliminate": Family(eliminate_case, CHANNELS, PLAIN, ("float32", "float64")),
    "rank": Family(rank_case, MATRICES, PLAIN),
    "besa_mask": Family(besa_mask_case, MATRICES, PUBLISHED),
}
