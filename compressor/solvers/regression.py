"""One regression of the repair: from inputs and targets, batch by batch, to new parameters."""

from collections.abc import Iterator, Sequence

import torch

from compressor.errors import InputError
from compressor.solvers.ridge import Moments, ridge

Pairs = Iterator[tuple[torch.Tensor, torch.Tensor]]


def regress(
    pairs: Pairs,
    fitted: int,
    present: torch.Tensor,
    dtype: torch.dtype,
    grid: Sequence[float],
    what: str,
) -> tuple[torch.Tensor | None, dict | None]:
    """New parameters [outputs, channels], float32, and what is recorded of them.

    pairs: of every batch the inputs [tokens, channels] and targets [tokens, outputs], those from
    number `fitted` on being held back; dtype: what they are rounded to; what: names them in the
    `InputError` for such as are not finite. The parameters are None where the present ones are no
    worse; the record, `lambda` and the held-back error before and after, where they are not wrong.
    """
    outputs, channels = present.shape
    fit, held = (Moments.empty(channels, outputs, present.device, dtype) for _ in range(2))
    for i, pair in enumerate(pairs):
        (fit if i < fitted else held).add(*pair)
    if not (fit.finite and held.finite):
        raise InputError(f"The activations of {what} are not finite; try --dtype float32.")
    new, taken, errors = ridge(
        fit.gram, fit.cross, present, held.gram, held.cross, held.energy, grid
    )
    if len(errors) == 1:
        return None, None
    energy = held.energy.item()
    after = errors[0 if taken is None else 1 + grid.index(taken)]
    record = {"lambda": taken, "before": errors[0] / energy, "after": after / energy}
    return (None if taken is None else new), record
