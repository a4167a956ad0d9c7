"""Ridge regression toward the present weights, from sums over tokens alone.

With A [tokens, channels] what a projection is fed, W [outputs, channels] its present weights and
T [tokens, outputs] what it should produce, the new weights are W + E with

    E = (T - A W^T)^T A (A^T A + lambda I)^-1,

the least-squares solution that leaves W no further than lambda lets it: a large lambda keeps W, and
lambda = 0 is ordinary least squares. Ours; the closed form is that of ridge regression (Hoerl and
Kennard, 1970) with its origin moved to W.
"""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass
class Moments:
    """Sums over tokens: gram = A^T A [channels, channels], cross = T^T A [outputs, channels] and
    energy = |T|^2, in float32 or, of float64 numbers, float64 (the energy always).

    dtype: what A and T are rounded to first. bfloat16 makes the sums as fast as a model's own products
    in it, and no less exact than the activations were: its products are exact in float32.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    energy: torch.Tensor
    dtype: torch.dtype

    @classmethod
    def empty(
        cls, channels: int, outputs: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> "Moments":
        wide = torch.promote_types(dtype, torch.float32)
        return cls(
            torch.zeros(channels, channels, dtype=wide, device=device),
            torch.zeros(outputs, channels, dtype=wide, device=device),
            torch.zeros((), dtype=torch.float64, device=device),
            dtype,
        )

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Count tokens: inputs [tokens, channels] and targets [tokens, outputs], float32 or float64."""
        inputs, targets = (x.to(self.dtype).to(self.gram.dtype) for x in (inputs, targets))
        with products_of(self.dtype):
            self.gram.addmm_(inputs.T, inputs)
            self.cross.addmm_(targets.T, inputs)
        self.energy += targets.square().sum(dtype=torch.float64)


@contextmanager
def products_of(dtype: torch.dtype):
    """Let matrix products of float32 numbers that `dtype` holds exactly be computed in that."""
    units = {torch.backends.mkldnn.matmul: "bf16", torch.backends.cuda.matmul: "tf32"}
    former = {unit: unit.fp32_precision for unit in units}
    if dtype == torch.bfloat16:
        for unit, precision in units.items():
            unit.fp32_precision = precision
    try:
        yield
    finally:
        for unit, precision in former.items():
            unit.fp32_precision = precision


def ridge(
    gram: torch.Tensor,
    cross: torch.Tensor,
    weight: torch.Tensor,
    held_gram: torch.Tensor,
    held_cross: torch.Tensor,
    held_energy: float | torch.Tensor,
    grid: Sequence[float],
) -> tuple[torch.Tensor, float | None, list[float]]:
    """New weights, the lambda they were made with, and the held-back errors of all candidates.

    gram, cross: the sums of the fitted tokens (`Moments`); held_gram, held_cross, held_energy: those of
    tokens held back; weight [outputs, channels]. All of one floating dtype, in which it is solved.
    grid: values of lambda, relative to the mean diagonal of gram.

    The error of a candidate W' is |T - A W'^T|^2 over the held-back tokens; errors[0] is that of the
    present weights, errors[1 + i] that of grid[i], infinite where gram is too ill-conditioned for so
    small a lambda in this dtype. The candidate with the smallest error is returned; lambda is None
    where that is `weight` itself. No lambda is tried where errors[0] is no more than rounding.
    Each lambda has a Cholesky factorisation of its own, which even a dozen times is less work than
    one eigendecomposition.
    """
    residual = cross - weight @ gram
    held_residual = held_cross - weight @ held_gram
    errors = [float(held_energy) - inner(held_cross + held_residual, weight)]
    best, chosen = weight, None
    diagonal = gram.diagonal()
    resolved = 10 * torch.finfo(gram.dtype).eps * float(held_energy)
    for relative in grid if errors[0] > resolved and diagonal.mean() > 0 else ():
        undamped = diagonal.clone()
        diagonal += relative * undamped.mean()
        factor, failed = torch.linalg.cholesky_ex(gram)
        diagonal.copy_(undamped)
        if failed:
            errors.append(float("inf"))
            continue
        update = torch.cholesky_solve(residual.T, factor).T
        del factor
        errors.append(errors[0] - inner(update, 2 * held_residual - update @ held_gram))
        if errors[-1] < min(errors[:-1]):
            best, chosen = weight + update, relative
    return best, chosen, errors


def inner(a: torch.Tensor, b: torch.Tensor) -> float:
    """Sum of the products, added in float64."""
    return (a * b).sum(dtype=torch.float64).item()
