"""First-order Taylor importance for Torch-Pruning's pruners, from one read of weight and gradient.

    importance = FusedTaylorImportance()
    pruner = torch_pruning.pruner.BasePruner(model, example_inputs, importance=importance, ...)
    model(...).loss.backward()
    pruner.step()

Torch-Pruning finds what has to go together, and this says what of it matters: by the same numbers as its
own `GroupTaylorImportance`, which reads every matrix once for its outputs and once for its inputs and
writes their product each time. `pip install torch-pruning`.
"""

import torch
from torch.utils.weak import WeakIdKeyDictionary

from compressor.kernels.taylor import STATISTICS, Taylor, taylor

try:
    from torch_pruning.pruner import function
    from torch_pruning.pruner.importance import GroupTaylorImportance
except ImportError as error:
    raise ImportError(
        f"Torch-Pruning cannot be imported ({error}); install it: pip install torch-pruning"
    ) from None

OUTPUTS = (function.prune_linear_out_channels,)
INPUTS = (function.prune_linear_in_channels,)


class FusedTaylorImportance(GroupTaylorImportance):
    """Of a group of `torch.nn.Linear` layers; others in a group (norms, embeddings) count nothing.

    statistic: what is summed over a row or column of p = W * G: `absolute`, |p| (multivariable=False of
    Torch-Pruning); `signed`, p, whose size counts (multivariable=True); or `square`, p^2, W^2 times the
    gradient's Fisher diagonal. group_reduction, normalizer: Torch-Pruning's.

    Called with a group it gives float32 [channels] on the weights' device. ValueError where a weight has
    no gradient.
    """

    def __init__(
        self,
        statistic: str = "absolute",
        group_reduction: str = "mean",
        normalizer: str | None = "mean",
    ):
        if statistic not in STATISTICS:
            raise ValueError(
                f"statistic is {statistic!r}; it must be one of {', '.join(STATISTICS)}."
            )
        super().__init__(group_reduction, normalizer, target_types=[torch.nn.Linear])
        self.statistic = statistic
        # A layer is in two groups, by its outputs and by its inputs; a pruned one has a new weight.
        self._known = WeakIdKeyDictionary()

    @torch.no_grad()
    def __call__(self, group) -> torch.Tensor:
        found, places = [], []
        for item in group:
            layer, handler = item.dep.target.module, item.dep.handler
            if not isinstance(layer, torch.nn.Linear) or handler not in OUTPUTS + INPUTS:
                continue
            sums = self._sums(layer.weight)
            side = sums.rows if handler in OUTPUTS else sums.columns
            found.append(side[STATISTICS.index(self.statistic)].abs()[item.idxs])
            places.append(item.root_idxs)
        if not found:  # as Torch-Pruning tells of a group that is not to be pruned
            return None
        return self._normalize(self._reduce(found, places), self.normalizer)

    def _sums(self, weight: torch.Tensor) -> Taylor:
        if weight.grad is None:
            raise ValueError(
                f"A weight {list(weight.shape)} has no gradient; call loss.backward() before the step."
            )
        state = weight.data_ptr(), weight._version, weight.grad._version
        known = self._known.get(weight)
        if known is None or known[0] != state:
            self._known[weight] = known = state, taylor(weight, weight.grad, columns=True)
        return known[1]
