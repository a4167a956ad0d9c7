"""Results are laid out as tracing expects: compiled code reads memory by the fake results' strides."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from compressor.kernels import (
    besa_cut,
    besa_mask,
    colsum,
    compact,
    gate,
    gated_swiglu,
    moments,
    rank,
    swiglu_moments,
)

MATRIX = torch.randn(8, 6).T
ACTIVATIONS = torch.randn(8, 5, 3).permute(2, 1, 0)
CHANNELS = torch.rand(8)
RANKS = torch.arange(8).to(torch.uint16)[:, None].expand(8, 6).contiguous().T
BETA = torch.rand(5, 3).T
CUT = torch.tensor([1, 2, 3], dtype=torch.int32)
KEPT = torch.tensor([0, 2])

CASES = {
    "rank": (rank.OP, MATRIX, None),
    "colsum": (colsum.OP, MATRIX, None, 1),
    "besa_cut": (besa_cut.OP, BETA, CUT, 3, 0),
    "besa_mask": (besa_mask.OP, [MATRIX], [RANKS], BETA, [CUT]),
    "besa_mask_backward": (besa_mask.BACKWARD, [MATRIX], [MATRIX], [RANKS], [3], 5),
    "compact": (compact.OP, [MATRIX], [None], [None], [None], None),
    "compact columns": (compact.OP, [MATRIX], [None], [KEPT], [None], None),
    "gated": (gate.OP, ACTIVATIONS, CHANNELS, 1),
    "gated_backward": (gate.BACKWARD, ACTIVATIONS, ACTIVATIONS, CHANNELS, 1),
    "gated_swiglu": (gated_swiglu.OP, ACTIVATIONS, ACTIVATIONS, CHANNELS, "silu"),
    "gated_swiglu_backward": (
        gated_swiglu.BACKWARD,
        *(ACTIVATIONS, ACTIVATIONS, ACTIVATIONS),
        *(CHANNELS, "silu"),
    ),
    "moments": (moments.OP, ACTIVATIONS, None),
    "swiglu_moments": (swiglu_moments.OP, ACTIVATIONS, ACTIVATIONS, "silu", None, True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_permuted_inputs_give_the_strides_of_the_fake(case, dtype):
    op, *arguments = tree_map_only(
        torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, CASES[case]
    )
    real = op(*arguments)
    with FakeTensorMode() as mode:
        fake = op(*tree_map_only(torch.Tensor, mode.from_tensor, arguments))
    for a, b in zip(tree_leaves(real), tree_leaves(fake), strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
