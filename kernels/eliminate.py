"""Greedy elimination of single channels: which goes next, and what the rest must take over for it.

With H = (G + lambda diag G)^-1 and K = W^T W (`solvers/elimination.py`), taking a channel g away costs
prior_g * K_gg / H_gg, and leaves

    H -= v v^T,  K -= u v^T + v u^T,  v = H_:g / sqrt(H_gg),  u = K_:g / sqrt(H_gg) - K_gg / (2 H_gg) v.

The matrices stay as they are: H and K as they would be are H - V^T V and K - U^T V - V^T U, with a row
of V and of U for every channel gone; all that a step needs are their diagonals and one row of each. So a
step reads a row of H and K and all of V and U, and all steps cost as much as a product with them; the
caller brings the matrices up to date by one product.

One launch a channel on CUDA, and the host waits for none.
"""

import torch

from compressor.kernels.checks import check_tensor
from compressor.kernels.dispatch import Op
from compressor.kernels.native import native

MOST = 128  # at once: what the CUDA kernel keeps of V and U's columns
ROWS = 64  # channels of a CUDA block, as in eliminate.cu
WIDE = (torch.float32, torch.float64)


def eliminate(
    inverse: torch.Tensor,
    products: torch.Tensor,
    prior: torch.Tensor,
    count: int,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """inverse H and products K [channels, channels], symmetric, prior [channels] -> order, costs, V, U.

    order [count] int64: the channels that go, the cheapest first; of equal ones, and of such whose cost
    is no number, the first. costs [count]: of each when it went. V and U [count, channels]. count is at
    most 128 and the channels. All of one dtype, float32 or float64, in which it is computed; contiguous.
    """
    return OP(inverse, products, prior, count, backend=backend)


def _ref(inverse, products, prior, count):
    channels = len(prior)
    v, u = (inverse.new_zeros(count, channels) for _ in range(2))
    h, k = inverse.diagonal().clone(), products.diagonal().clone()
    left = torch.ones(channels, dtype=torch.bool, device=prior.device)
    numbers = torch.arange(channels, device=prior.device)
    order, costs = [numbers[:0]], [prior[:0]]
    for step in range(count):
        cost = prior * k.clamp_min(0) / h
        gone = cheapest(cost, left)
        order.append(gone)
        costs.append(cost[gone])
        left = left & (numbers != gone)
        v_gone, u_gone = (x[:step].index_select(1, gone) for x in (v, u))
        root, half = h[gone].sqrt(), k[gone] / (2 * h[gone])
        v[step] = (inverse[gone][0] - v[:step].T @ v_gone[:, 0]) / root
        rest = products[gone][0] - u[:step].T @ v_gone[:, 0] - v[:step].T @ u_gone[:, 0]
        u[step] = rest / root - half * v[step]
        h, k = h - v[step].square(), k - 2 * u[step] * v[step]
    return torch.cat(order), torch.cat(costs), v, u


def cheapest(cost: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """The first of the smallest costs of those `left`; one that is no number counts as infinite. [1], as
    a number a device would have to be asked for.
    """
    known = cost.nan_to_num(torch.inf, posinf=torch.inf)
    first = left & (known == known.masked_fill(~left, torch.inf).min())
    numbers = torch.arange(len(cost), device=cost.device)
    return torch.where(first, numbers, len(cost)).min()[None]


def _ext(inverse, products, prior, count):
    channels, device = len(prior), prior.device
    order = torch.empty(count, dtype=torch.int64, device=device)
    costs = torch.empty(count, dtype=prior.dtype, device=device)
    v, u = (torch.empty(count, channels, dtype=prior.dtype, device=device) for _ in range(2))
    sizes = (prior.dtype == torch.float64, channels, count)
    more = scratch(channels, prior.dtype, device) if device.type == "cuda" else []
    if count:
        native("eliminate", device, inverse, products, prior, *sizes, order, costs, v, u, *more)
    return order, costs, v, u


def scratch(channels: int, dtype: torch.dtype, device: torch.device | str) -> list[torch.Tensor]:
    """What CUDA's launches tell each other by; see csrc/ops.h."""
    parts = -(-channels // ROWS)
    shapes = ((2, 2, channels), dtype), ((2, parts), dtype), ((2, parts), torch.int32)
    shapes = *shapes, ((channels,), torch.uint8)
    return [torch.empty(shape, dtype=kind, device=device) for shape, kind in shapes]


def _fake(inverse, products, prior, count):
    order = prior.new_empty(count, dtype=torch.int64)
    v, u = (prior.new_empty(count, len(prior)) for _ in range(2))
    return order, prior.new_empty(count), v, u


def _check(inverse, products, prior, count):
    check_tensor("eliminate", "prior", prior, WIDE, (None,))
    size = len(prior)
    for name, matrix in (("inverse", inverse), ("products", products)):
        check_tensor("eliminate", name, matrix, (prior.dtype,), (size, size), prior.device)
        if not matrix.is_contiguous():
            raise ValueError(f"eliminate: {name} must be contiguous.")
    if not prior.is_contiguous():
        raise ValueError("eliminate: prior must be contiguous.")
    if not 0 <= count <= min(size, MOST):
        raise ValueError(
            f"eliminate: count is {count}; it must be between 0 and {min(size, MOST)}."
        )


OP = Op(
    "eliminate(Tensor inverse, Tensor products, Tensor prior, int count)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    check=_check,
    ref=_ref,
    fake=_fake,
    ext=_ext,
    cpu="ext",
    cuda="ext",
    wide=True,
)
