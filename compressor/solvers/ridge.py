"""Ridge regression toward the present weights, from sums over tokens alone.

With A [tokens, channels] what a projection is fed, W [outputs, channels] its present weights and
T [tokens, outputs] what it should produce, the new weights are W + E with

    E = (T - A W^T)^T A (A^T A + lambda I)^-1,

the least-squares solution that leaves W no further than lambda lets it: a large lambda keeps W, and
lambda = 0 is ordinary least squares. Ours; the closed form is that of ridge regression (Hoerl and
Kennard, 1970) with its origin moved to W.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from compressor.errors import InputError
from compressor.model.ranks import ALONE, Alone
from compressor.solvers.fixed_order import factored, one_thread, solved, total

Pairs = Iterator[tuple[torch.Tensor, torch.Tensor]]

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # lambdas, relative to the mean diagonal
PANEL = 1024  # rows of a Gram matrix that are summed at once, up to the diagonal
ROWS = 512  # outputs whose residuals and errors are computed at once
SKETCH = 512  # combinations of outputs that judge a lambda, where there are more than twice as many


@dataclass
class Moments:
    """Sums over tokens: gram = A^T A [channels, channels], cross = T^T A [outputs, channels] and
    energy = |T|^2, in float32 or, of float64 numbers, float64 (the energy always).

    dtype: what A and T are rounded to first. bfloat16 makes the sums as fast as a model's products
    in it, and no less exact than the activations were: its products are exact in float32.
    """

    lower: torch.Tensor  # of gram what is summed: panels of rows up to the diagonal
    cross: torch.Tensor
    energy: torch.Tensor
    dtype: torch.dtype
    mirrored: bool = True

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
        inputs, targets = (x.to(self.dtype).to(self.lower.dtype) for x in (inputs, targets))
        with products_of(self.dtype):
            for rows, up_to in self.panels():
                self.lower[rows, :up_to].addmm_(inputs[:, rows].T, inputs[:, :up_to])
            self.cross.addmm_(targets.T, inputs)
        self.energy += total(targets.square())
        self.mirrored = False

    def add_up(self, ranks: Alone) -> None:
        """Make the sums those of all ranks."""
        ranks.all_sum(self.lower, self.cross, self.energy)
        self.mirrored = False

    @property
    def gram(self) -> torch.Tensor:
        if not self.mirrored:
            for rows, _ in self.panels():
                self.lower[: rows.start, rows] = self.lower[rows, : rows.start].T
            self.mirrored = True
        return self.lower

    @property
    def finite(self) -> bool:
        """Whether no sum is NaN or infinite; without the copies that `isfinite` makes."""
        ends = [torch.stack(t.aminmax()) for t in (self.gram, self.cross) if t.numel()]
        return bool(torch.stack(ends).isfinite().all())

    def panels(self) -> Iterator[tuple[slice, int]]:
        """Rows, and the column that the last of them ends at."""
        for begin in range(0, len(self.lower), PANEL):
            end = min(begin + PANEL, len(self.lower))
            yield slice(begin, end), end


def summed_in(dtype: torch.dtype) -> torch.dtype:
    """What `Moments` of a model of this dtype round to: bfloat16, or nothing, since what tokens are
    weighed by could leave the range of float16.
    """
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


@contextmanager
def products_of(dtype: torch.dtype):
    """Let matrix products of float32 numbers that `dtype` holds exactly be computed in that."""
    units = {
        torch.backends.mkldnn.matmul: "bf16",  # type: ignore[attr-defined]  # made on import
        torch.backends.cuda.matmul: "tf32",
    }
    former = {unit: unit.fp32_precision for unit in units}
    if dtype == torch.bfloat16:
        for unit, precision in units.items():
            unit.fp32_precision = precision
    try:
        yield
    finally:
        for unit, precision in former.items():
            unit.fp32_precision = precision


def regress(
    pairs: Pairs,
    fitted: int,
    present: torch.Tensor,
    dtype: torch.dtype,
    grid: Sequence[float],
    what: str,
    ranks: Alone = ALONE,
) -> tuple[torch.Tensor | None, dict | None]:
    """New parameters [outputs, channels], float32, and what is recorded of them.

    pairs: of every batch the inputs [tokens, channels] and targets [tokens, outputs], those from
    number `fitted` on being held back; dtype: what they are rounded to; what: names them in the
    `InputError` for such as are not finite. The parameters are None where the present ones are no
    worse; the record, `lambda` and the held-back error before and after, where they are not wrong. Of
    several ranks each has its own batches, and all find the same.
    """
    outputs, channels = present.shape
    fit, held = (Moments.empty(channels, outputs, present.device, dtype) for _ in range(2))
    for i, pair in enumerate(pairs):
        ranks.check()
        (fit if i < fitted else held).add(*pair)
    for moments in (fit, held):
        moments.add_up(ranks)
    if not (fit.finite and held.finite):
        raise InputError(f"The activations of {what} are not finite; try --dtype float32.")
    of_held = held.gram, held.cross, held.energy
    new, taken, errors = ridge(fit.gram, fit.cross, present, *of_held, grid, ranks)

    if len(errors) == 1:
        return None, None
    energy = held.energy.item()
    after = errors[0 if taken is None else 1 + grid.index(taken)]
    record = {"lambda": taken, "before": errors[0] / energy, "after": after / energy}
    return None if taken is None else new, record


def ridge(
    gram: torch.Tensor,
    cross: torch.Tensor,
    weight: torch.Tensor,
    held_gram: torch.Tensor,
    held_cross: torch.Tensor,
    held_energy: float | torch.Tensor,
    grid: Sequence[float],
    ranks: Alone = ALONE,
) -> tuple[torch.Tensor, float | None, list[float]]:
    """New weights, the lambda they were made with, and the held-back errors of all candidates.

    gram, cross: the sums of the fitted tokens (`Moments`); held_gram, held_cross, held_energy: those of
    tokens held back; weight [outputs, channels]. All of one floating dtype, in which it is solved; cross
    and held_cross become the residuals, so that besides the arguments one factor and two matrices like
    weight are in memory.
    grid: values of lambda, relative to the mean diagonal of gram.

    The error of a candidate W' is |T - A W'^T|^2 over the held-back tokens; errors[0] is that of the
    present weights, errors[1 + i] that of grid[i], infinite where gram is too ill-conditioned for so
    small a lambda in this dtype. The candidate with the smallest error is returned; lambda is None
    where that is `weight` itself. No lambda is tried where errors[0] is no more than rounding.
    Each lambda has a Cholesky factorisation of its own, which even a dozen times is less work than
    one eigendecomposition. Many outputs are judged by random combinations of them: of the errors but
    the first and that of what is returned these are unbiased estimates.

    Several ranks that have the same sums find the same: each tries some of the lambdas, and of all else,
    the residuals included, computes its part of the outputs.
    """
    outputs, mine = len(weight), ranks.part(len(weight))
    present = weight[mine]
    with_cross = inner(held_cross[mine], present)
    residual = less(cross[mine], present, gram)
    held_residual = less(held_cross[mine], present, held_gram)
    gained = with_cross + inner(held_residual, present)
    errors = [float(held_energy) - ranks.total(gained)]
    resolved = 10 * torch.finfo(gram.dtype).eps * float(held_energy)
    if errors[0] <= resolved or gram.diagonal().mean().item() <= 0:
        return weight, None, errors

    def gain(update: torch.Tensor | None, held: torch.Tensor) -> float:
        if update is None:
            return math.nan
        parts = zip(update.split(ROWS), held.split(ROWS), strict=True)
        return read(products(u, 2 * h - u @ held_gram) for u, h in parts)

    many = outputs > 2 * SKETCH
    judges = [
        combined(r, mine, outputs, ranks) if many else ranks.together(r, outputs)
        for r in (residual, held_residual)
    ]
    tried: dict[int, float] = {}
    best: tuple[int, torch.Tensor | None] | None = None
    for at in range(ranks.rank, len(grid), ranks.world):
        update = refitted(gram, judges[0], grid[at])
        error = errors[0] - gain(update, judges[1])
        tried[at] = error if math.isfinite(error) else math.inf
        if tried[at] < min((errors[0], *(tried[other] for other in tried if other != at))):
            best = at, update
    every = {at: error for some in ranks.gathered(tried) for at, error in some.items()}
    errors += [every[at] for at in range(len(grid))]
    chosen = min(range(len(grid)), key=every.__getitem__)
    if not every[chosen] < errors[0]:
        return weight, None, errors
    if many or ranks.world > 1 or best is None:
        best = chosen, refitted(gram, residual, grid[chosen])
        errors[1 + chosen] = errors[0] - ranks.total(gain(best[1], held_residual))
    if best[1] is None or not errors[1 + chosen] < errors[0]:
        return weight, None, errors
    return ranks.together(present + best[1], outputs), grid[chosen], errors


def refitted(gram: torch.Tensor, residual: torch.Tensor, relative: float) -> torch.Tensor | None:
    """residual (gram + lambda I)^-1, lambda = `relative` of the mean diagonal; None where a Cholesky
    factorisation fails. `gram` is damped in place meanwhile.
    """
    diagonal = gram.diagonal()
    undamped = diagonal.clone()
    diagonal += relative * undamped.mean()
    factor = factored(gram)
    diagonal.copy_(undamped)
    if factor is None:
        return None
    # `cholesky_solve` would copy the factor.
    half = solved(factor, residual.T)
    with one_thread(factor):
        return torch.linalg.solve_triangular(factor.mT, half, upper=True, out=half).T


def less(cross: torch.Tensor, weight: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """cross - weight gram, in the place of cross."""
    for part, rows in zip(cross.split(ROWS), weight.split(ROWS), strict=True):
        part -= rows @ gram
    return cross


def combined(
    residual: torch.Tensor, mine: slice, outputs: int, ranks: Alone = ALONE
) -> torch.Tensor:
    """`SKETCH` random combinations of all outputs' rows, of which this rank has these; their sum of
    squares is that of the rows in expectation.
    """
    shape = SKETCH, outputs
    signs = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = (signs / math.sqrt(SKETCH)).to(residual)[:, mine] @ residual
    ranks.all_sum(found)
    return found


def inner(a: torch.Tensor, b: torch.Tensor) -> float:
    """Sum of the products, added in float64."""
    return read(products(*some) for some in zip(a.split(ROWS), b.split(ROWS), strict=True))


def products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return total(a * b)


def read(sums: Iterable[torch.Tensor]) -> float:
    """Their sum; the host waits for a device once."""
    return torch.stack([*sums]).sum().item()


def rates(stream: torch.Tensor) -> torch.Tensor:
    """What a token counts in sums: 1 / root mean square [tokens, 1], in float32 or better; so much of it
    the norm that reads the stream lets through.
    """
    return wide(stream).square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()


def wide(x: torch.Tensor) -> torch.Tensor:
    """In float32, or float64 as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
