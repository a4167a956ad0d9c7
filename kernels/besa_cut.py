"""How many weights of each row BESA prunes, from its distribution over candidate sparsities.

beta[g, d] is the probability that row group g prunes the share d / D of every row, d = 0 .. D
(arXiv 2402.16880, equation 3: alpha = sum_d beta_d d / D). The cut is the mean, floor(columns *
alpha), or the cut of a drawn d, floor(columns * d / D): then each weight is pruned with exactly the
probability of equation 4. Not differentiable: the gradient to beta is `besa_mask`'s.
"""

import torch

from compressor.kernels.checks import check_tensor
from compressor.kernels.dispatch import Op
from compressor.kernels.native import native
from compressor.kernels.philox import first_words
from compressor.kernels.rank import MOST_COLUMNS

MOST_CANDIDATES = 4097


def besa_cut(
    beta: torch.Tensor,
    columns: int | torch.Tensor,
    *,
    seed: int | None = None,
    offset: int = 0,
    backend: str | None = None,
) -> torch.Tensor:
    """beta [groups, D + 1], float32, rows of sum 1 -> int32 [groups], 0 .. columns.

    Without a seed the mean, in float64 with beta divided by its sum, so that a beta of one candidate
    and a uniform one are exact. With a seed, inverse transform sampling: the first d whose prefix sum
    of beta (float32, in order) is above u * sum, u = (Philox(seed, offset, group) >> 8) * 2^-24.
    The same on every device and backend, bit for bit. A beta without a positive finite sum cuts 0.
    float64 is taken as well, by the reference. columns: of every row, or int32 [groups] where groups of
    several matrices go in one call.
    """
    if isinstance(columns, int | torch.SymInt):
        if not 0 <= columns <= MOST_COLUMNS:
            raise ValueError(f"besa_cut: columns is {columns}; it must be 0 to {MOST_COLUMNS:,}.")
        check_tensor("besa_cut", "beta", beta)
        columns = torch.full(beta.shape[:1], columns, dtype=torch.int32, device=beta.device)
    return OP(beta, columns, seed, offset, backend=backend)


def _ref(beta, columns, seed, offset):
    groups, candidates = beta.shape
    if seed is None:
        total = weighted = torch.zeros(groups, dtype=torch.float64, device=beta.device)
        for d in range(candidates):
            total = total + beta[:, d]
            weighted = weighted + beta[:, d].double() * d
        cut = columns * weighted / (total * (candidates - 1))
        return torch.where(cut > 0, cut, 0).minimum(columns).to(torch.int32)
    prefix = [torch.zeros_like(beta[:, 0])]
    for d in range(candidates):
        prefix.append(prefix[-1] + beta[:, d])
    uniform = (first_words(seed, offset, groups, beta.device) >> 8).to(beta.dtype) * 2.0**-24
    above = torch.stack(prefix[1:]) > uniform * prefix[-1]
    drawn = above.to(torch.int32).argmax(0)  # 0 where none is
    return (columns * drawn // (candidates - 1)).to(torch.int32)


def _ext(beta, columns, seed, offset):
    beta, columns = beta.float().contiguous(), columns.contiguous()
    groups, candidates = beta.shape
    cut = torch.empty(groups, dtype=torch.int32, device=beta.device)
    word = 2**64 - 1
    random = (seed is not None, (seed or 0) & word, offset & word)
    native("besa_cut", beta.device, beta, groups, candidates, columns, *random, cut)
    return cut


def _fake(beta, columns, seed, offset):
    return beta.new_empty(beta.shape[0], dtype=torch.int32)


def _check(beta, columns, seed, offset):
    check_tensor("besa_cut", "beta", beta, (torch.float32, torch.float64), (None, None))
    if not 2 <= beta.shape[1] <= MOST_CANDIDATES:
        raise ValueError(
            f"besa_cut: beta has {beta.shape[1]} candidates; 2 to {MOST_CANDIDATES} are possible."
        )
    check_tensor("besa_cut", "columns", columns, (torch.int32,), tuple(beta.shape[:1]), beta.device)


OP = Op(
    "besa_cut(Tensor beta, Tensor columns, SymInt? seed, SymInt offset) -> Tensor",
    check=_check,
    ref=_ref,
    fake=_fake,
    ext=_ext,
    cpu="ext",
    cuda="ext",
)
