"""Cases of the ops on weights, at the shapes of real models' matrices."""

import torch

from compressor.kernels import besa_mask, colsum, compact, eliminate, rank, taylor
from compressor.kernels.bench.case import Case, compiled, drawn, exactly, roughly
from compressor.kernels.bench.published_besa import published_mask, sorted_index

CANDIDATES = 101  # sparsities 0.00 to 1.00


def colsum_case(shape: tuple[int, int], device: str, dtype: str) -> Case:
    weight = drawn(shape, device, dtype)
    scale = torch.rand(shape[0], device=device)
    return Case(
        bytes=weight.nbytes + scale.nbytes + 4 * shape[1],
        operations=3 * weight.numel(),
        providers={
            "ours": lambda: colsum.colsum(weight, scale, 2),
            "eager": lambda: colsum.colsum(weight, scale, 2, backend="ref"),
            "compile": compiled(colsum.OP.implementations["ref"], weight, scale, 2),
        },
    )


def taylor_case(shape: tuple[int, int], device: str, dtype: str) -> Case:
    """All statistics of every row and every column."""
    weight, grad = (drawn(shape, device, dtype) for _ in range(2))

    def ours():
        return taylor.taylor(weight, grad, rows=True, columns=True, magnitude=True)[:2]

    def eager(weight, grad):
        w = weight.float()
        p = w * grad.float()
        statistics = (p, p.abs(), p.square(), w.abs(), w.square())
        return tuple(torch.stack([s.sum(axis) for s in statistics]) for axis in (1, 0))

    def compare(ours, expected):
        for mine, theirs in zip(ours, expected, strict=True):
            error = (mine - theirs).abs() / theirs[
                1
            ]  # a signed sum's rounding is that of its terms
            assert error.max() < 1e-5, error.max()

    return Case(
        bytes=weight.nbytes + grad.nbytes + 5 * 4 * sum(shape),
        operations=14 * weight.numel(),
        providers={
            "ours": ours,
            "eager": lambda: eager(weight, grad),
            "compile": compiled(eager, weight, grad),
        },
        compare=compare,
    )


def compact_case(shape: tuple[int, int], device: str, dtype: str) -> Case:
    """Half of the rows and half of the columns, at random; the lists were checked before."""
    weight = drawn(shape, device, dtype)
    rows, columns = (kept_half(size, device) for size in shape)
    return Case(
        bytes=weight.nbytes // 2 + weight.nbytes // 4,
        operations=0,
        providers={
            "ours": lambda: compact.compact(weight, rows, columns, check=False),
            "eager": lambda: weight.index_select(0, rows).index_select(1, columns),
            "compile": compiled(lambda w, r, c: w[r[:, None], c], weight, rows, columns),
        },
        compare=exactly,
    )


def compact_rows_case(shape: tuple[int, int], device: str, dtype: str) -> Case:
    """Half of the rows, at random: copies of whole rows."""
    weight = drawn(shape, device, dtype)
    rows = kept_half(shape[0], device)
    return Case(
        bytes=weight.nbytes,
        operations=0,
        providers={
            "ours": lambda: compact.compact(weight, rows, check=False),
            "eager": lambda: weight.index_select(0, rows),
            "compile": compiled(lambda w, r: w[r], weight, rows),
        },
        compare=exactly,
    )


def kept_half(size: int, device: str) -> torch.Tensor:
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))[: size // 2]
    return order.sort().values.to(device)


def rank_case(shape: tuple[int, int], device: str, dtype: str) -> Case:
    """Eager is one `torch.sort` of the importance, without turning its indices into ranks."""
    weight = drawn(shape, device, dtype)
    scale = torch.rand(shape[1], device=device)

    def eager(weight, scale):
        return (weight.float() * scale).abs().sort(dim=1, stable=True).indices

    def compare(found, order):
        if found.dtype == torch.uint16:
            found = torch.argsort(found.to(torch.int32), dim=1)
        exactly(found, order)

    return Case(
        bytes=weight.nbytes + 2 * weight.numel() + scale.nbytes,
        operations=0,
        providers={
            "ours": lambda: rank.rank(weight, scale),
            "eager": lambda: eager(weight, scale),
            "compile": compiled(eager, weight, scale),
        },
        compare=compare,
    )


def eliminate_case(shape: tuple[int, int], device: str, dtype: str) -> Case:
    """Channels that go in turn; each asks for a row of two matrices, and for all that went before."""
    channels, count = shape[0], min(*shape, eliminate.MOST)
    root = drawn((channels, channels), device, dtype)
    products = root @ root.T / channels
    products.diagonal().add_(1)
    inverse = products.flip(0).flip(1).contiguous()
    prior = torch.rand(channels, device=device).to(products.dtype) + 0.5

    plain = torch.compile(plain_step, dynamic=False)

    def compare(ours, expected):
        torch.testing.assert_close(ours[1], expected[1], rtol=1e-3, atol=1e-6)

    return Case(
        bytes=4 * count * channels * products.element_size(),
        operations=6 * channels * count**2 // 2,
        providers={
            "ours": lambda: eliminate.eliminate(inverse, products, prior, count),
            "eager": lambda: eliminate.eliminate(inverse, products, prior, count, backend="ref"),
            "compile": lambda: plain_elimination(plain, inverse, products, prior, count),
        },
        compare=compare,
    )


def plain_elimination(step, inverse, products, prior, count: int):
    """A step of one shape, so that it is compiled once: what is not there yet is zero."""
    v, u = (inverse.new_zeros(count, len(prior)) for _ in range(2))
    h, k = inverse.diagonal().clone(), products.diagonal().clone()
    order, costs = [], []
    for at in range(count):
        gone, cost, v[at], u[at], h, k, prior = step(inverse, products, prior, v, u, h, k)
        order.append(gone)
        costs.append(cost)
    return torch.cat(order), torch.cat(costs), v, u


def plain_step(inverse, products, prior, v, u, h, k):
    """The channel that goes, its cost, and all that is without it; its prior is infinite then."""
    cost, gone = (prior * k.clamp_min(0) / h).min(0, keepdim=True)
    v_gone, u_gone = v[:, gone][:, 0], u[:, gone][:, 0]
    root, half = h[gone].sqrt(), k[gone] / (2 * h[gone])
    v_new = (inverse[gone][0] - v_gone @ v) / root
    u_new = (products[gone][0] - v_gone @ u - u_gone @ v) / root - half * v_new
    h, k = h - v_new.square(), k - 2 * u_new * v_new
    h, k = h.index_fill(0, gone, 1), k.index_fill(0, gone, 1)
    return gone, cost, v_new, u_new, h, k, prior.index_fill(0, gone, torch.inf)


def besa_mask_case(shape: tuple[int, int], device: str, dtype: str) -> Case:
    """A step of BESA: mask from row-wise distributions over 101 sparsities, and their gradient."""
    weight, grad = (drawn(shape, device, dtype) for _ in range(2))
    ranks, order = rank.rank(weight), sorted_index(weight)
    beta = torch.softmax(torch.randn(shape[0], CANDIDATES, device=device), 1)
    wide = ranks.to(torch.int32)  # what a compiler knows to compare
    plain = torch.compile(plain_mask, dynamic=False)

    def run(function):
        leaf = beta.detach().requires_grad_()
        output = function(leaf)
        return output.detach(), *torch.autograd.grad(output, leaf, grad)

    return Case(
        bytes=4 * (weight.nbytes + weight.numel()) + 2 * beta.nbytes,
        operations=3 * weight.numel(),
        providers={
            "ours": lambda: run(lambda b: besa_mask.besa_mask(weight, ranks, b)),
            "published": lambda: run(lambda b: published_mask(weight, order, b)),
            "eager": lambda: run(lambda b: besa_mask.besa_mask(weight, ranks, b, backend="ref")),
            "compile": lambda: run(lambda b: plain(weight, wide, b)),
        },
        compare=roughly,
    )


def plain_mask(weight: torch.Tensor, rank: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """The mask of row-wise cuts and its gradient in a few lines that a compiler can fuse: no matrix
    product, no scatter but the gradient's, and everything by rank in place.
    """
    columns, last = weight.shape[1], beta.shape[1] - 1
    steps = torch.arange(last + 1, device=weight.device)
    cut = ((beta.detach() * steps).sum(1) * columns / last).to(torch.int32)
    # The first candidate that prunes a rank; all behind it do too.
    first = ((rank + 1) * last + columns - 1) // columns
    pruned = beta.flip(1).cumsum(1).flip(1).gather(1, first.to(torch.int64))
    mask = (rank >= cut[:, None]).to(beta.dtype)
    return weight * (mask + pruned.detach() - pruned).to(weight.dtype)
