"""Weighted column sums of a matrix:  out[c] = sum_r w[r] * |W[r, c]|^p,  p = 1 or 2.

The whole weight chain of LLM-BIP is three calls; magnitude and Wanda norms are it with w = 1.
"""

import torch

ROWS = 512  # at a time, so that no float32 copy of the whole matrix is made


def colsum(weight: torch.Tensor, scale: torch.Tensor | None = None, p: int = 1) -> torch.Tensor:
    """weight [rows, columns] of any float dtype, scale [rows] or none; [columns].

    Sums in float32, or float64 if the weight is of that type.
    """
    if weight.ndim != 2:
        raise ValueError(f"colsum: weight must be a matrix, not of shape {tuple(weight.shape)}.")
    if p not in (1, 2):
        raise ValueError(f"colsum: p must be 1 or 2, not {p!r}.")
    if scale is not None and scale.shape != weight.shape[:1]:
        raise ValueError(
            f"colsum: scale is {tuple(scale.shape)}, but the matrix has {weight.shape[0]} rows."
        )
    exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
    total = torch.zeros(weight.shape[1], dtype=exact, device=weight.device)
    for begin in range(0, weight.shape[0], ROWS):
        part = slice(begin, begin + ROWS)
        powers = weight[part].to(exact).abs() if p == 1 else weight[part].to(exact).square()
        total += powers.sum(0) if scale is None else scale[part].to(exact) @ powers
    return total
