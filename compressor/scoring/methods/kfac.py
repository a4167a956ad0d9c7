"""Second-order scores of units, from gradients at the output projections; no weight gradient is built.

Of token t, x_t is the unit's part of the input of o_proj or down_proj, W_u the unit's columns, and g_t
the gradient of the sequence's summed loss at the projection's output (`output_gradients`). Removing
the unit takes W_u x_t from the residual stream; to second order, with the Fisher matrix in place of
the Hessian and tokens taken as independent, the mean loss grows by half of

    mask-fisher   E[(g_t . W_u x_t)^2] = E[(x_t . dL/dx_t)^2]
    kfac          tr(W_u^T G W_u S_u),  S_u = E[x_t x_t^T],  G = E[g_t g_t^T]

the second being the first with inputs and gradients taken as independent; for one FFN channel it is
E[x^2] w^T G w. Both are expectations over the tokens that predict.

Provenance. That a layer's Fisher matrix factorises into S and G is K-FAC (arXiv 1503.05671), which
others have used to prune (arXiv 1905.05934, 2312.17244); the Fisher information of a mask, with one
gradient a sequence, is that of arXiv 2204.09656. Both forms above, for channels and KV groups whole and
by the token, are ours.
"""

import torch

from compressor.scoring.methods.output_gradients import OutputGradients
from compressor.solvers.ridge import products_of

COLUMNS = 1024  # of a weight at a time: 33 MB in float32 at a hidden size of 8,192


class MaskFisher(OutputGradients):
    """`mask-fisher`: keeps one number a unit."""

    def __init__(self, *args, **named):
        super().__init__(*args, **named)
        self.squares: dict[str, torch.Tensor] = {}

    def add(self, group, x, dx, dy) -> None:
        gate = (x * dx).unflatten(1, (self.geometry.units[group], -1)).sum(-1)
        self.squares[group] = self.squares.get(group, 0) + gate.double().square().sum(0)

    def scores(self) -> dict[str, torch.Tensor]:
        return {group: total / self.tokens for group, total in self.squares.items()}


class Kfac(OutputGradients):
    """`kfac`: keeps the gradients of each projection as a `Metric`."""

    def __init__(self, *args, **named):
        super().__init__(*args, **named)
        self.inputs: dict[str, torch.Tensor] = {}
        self.metrics: dict[str, Metric] = {}
        self.dtype = next(self.layer.parameters()).dtype

    def add(self, group, x, dx, dy) -> None:
        parts = x.unflatten(1, (self.geometry.units[group], -1))
        gram = torch.einsum("tuc,tud->ucd", parts, parts).double()
        self.inputs[group] = self.inputs.get(group, 0) + gram
        self.metrics.setdefault(group, Metric(self.dtype)).add(dy)

    def scores(self) -> dict[str, torch.Tensor]:
        errors = {}
        for group, gram in self.inputs.items():
            weight = self.layer.get_parameter(self.geometry.family.output(group)).detach()
            error = output_error(weight, gram / self.tokens, self.metrics[group])
            errors[group] = error / self.tokens
        return errors


class Metric:
    """M = sum of g g^T over rows g: the rows themselves while they are fewer than their length, which
    is less work for a short text, and the matrix [hidden, hidden] from then on.

    dtype: of the model. Of bfloat16 gradients, scaled by the length of their text, what is multiplied
    is rounded as they are (on a GPU to TF32, which is finer), and added in float32: a metric is a sum
    over thousands.
    """

    def __init__(self, dtype: torch.dtype = torch.float32):
        self.dtype = dtype
        self.rows: list[torch.Tensor] = []
        self.gram: torch.Tensor | None = None

    def add(self, rows: torch.Tensor) -> None:
        """rows [tokens, hidden], float32 or better."""
        if self.gram is not None:
            with products_of(self.dtype):
                self.gram.addmm_(rows.T, rows)
            return
        self.rows.append(rows)
        if sum(map(len, self.rows)) >= rows.shape[1]:
            every = torch.cat(self.rows)
            with products_of(self.dtype):
                self.gram = every.T @ every
            self.rows.clear()

    def factors(self, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrices L, R with L^T R = columns^T M columns, for columns [hidden, n].

        Products with bfloat16 columns are taken in bfloat16: their errors are random and average out
        over the hidden size, and the sums that follow are wide.
        """
        if self.gram is not None:
            return columns.to(self.gram.dtype), self._product(self.gram, columns)
        through = self._product(torch.cat(self.rows), columns)
        return through, through

    @staticmethod
    def _product(metric: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        narrow = columns.dtype == torch.bfloat16
        computed = columns.dtype if narrow else metric.dtype
        return (metric.to(computed) @ columns.to(computed)).to(metric.dtype)


def output_error(weight: torch.Tensor, inputs: torch.Tensor, metric: Metric) -> torch.Tensor:
    """tr(W_u^T M W_u S_u) of every unit: float64 [units].

    weight [hidden, channels]; inputs S [units, width, width], width = channels / units. In slices of
    whole units: beside them, nothing of M's size is made.
    """
    units, width, _ = inputs.shape
    step = max(1, COLUMNS // width)
    errors = []
    for begin in range(0, units, step):
        some = inputs[begin : begin + step]
        columns = weight[:, begin * width : (begin + len(some)) * width]
        if width == 1:
            left, right = metric.factors(columns)
            errors.append((left * right).sum(0).double() * some.flatten().double())
            continue
        left, right = (m.T.unflatten(0, (-1, width)) for m in metric.factors(columns))
        errors.append(((left @ right.transpose(1, 2)).double() * some.double()).sum((1, 2)))
    return torch.cat(errors).clamp_min(0)
