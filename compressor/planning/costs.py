"""What units cost, in parameters, bytes or a budget, and how near a size comes to a target."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.groups import GROUPS

if TYPE_CHECKING:  # targets are judged before torch is imported, which takes seconds
    from compressor.model.source import Source


HEADER_ENTRY = 150  # bytes of a tensor in the header of a file, at most
CLOSE = 0.005  # half a point: as near a result comes to its target wherever widths can


@dataclass(frozen=True)
class Costs:
    """What units of each group cost, and what the model has besides, in parameters, bytes and a budget.

    Of a source without some of its blocks the units and the rest are those of the blocks that are left,
    `total` and `prunable` those of the whole, of which shares are counted.

    prices[measure][group][n]: of n units of one block; in all measures but `parts` n times `unit`.
    """

    unit: dict[str, dict[str, int]]  # unit[group]["params" | "bytes" | "flops"], of one block
    prices: dict[str, dict[str, Sequence[int]]]
    rest: dict[str, int]  # of the model with no units
    total: dict[str, int]  # of the model
    prunable: int  # weights of the blocks' projections, in parameters
    block_units: list[dict[str, int]]
    # The most that is written besides: biases that only the type that is written has
    # (`Container.zeros`), and the headers of the files.
    added: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: "Source", budget: str = "params") -> "Costs":
        from compressor.model.widths import whole_matrices
        from compressor.planning.budget import flops_of, table_of

        if checkpoint.family.experts and budget != "params":
            why = (
                "An expert that goes saves no work, since every token passes as many as before"
                if checkpoint.family.whole_experts
                else "What goes of experts is counted in parameters"
            )
            raise InputError(
                f"{why}, so --budget is params for {checkpoint.family.model_type}, not {budget}; leave "
                "it out."
            )
        unit, prunable, source = {}, 0, checkpoint.whole
        for group, slices in checkpoint.family.groups().items():
            # The first block that has any; where none has, a unit costs nothing.
            having = [b for b, of_block in enumerate(checkpoint.block_units) if of_block[group]]
            owned = [
                checkpoint.tensors[name]
                for block in having[:1]
                for part in slices
                if (name := checkpoint.block_name(block, part.tensor)) in checkpoint.tensors
            ]
            units = checkpoint.block_units[having[0]][group] if having else 1
            unit[group] = {
                "params": sum(t.numel for t in owned) // units,
                "bytes": sum(t.end - t.begin for t in owned) // units,
            }
            weights = sum(t.numel for t in owned if len(t.shape) > 1) // units
            prunable += weights * sum(block[group] for block in source.block_units)
        # What is of another kind is a part of the blocks, though it stays.
        for index, family in enumerate(source.families):
            if family.whole:
                named = source.block_entries(index)
                prunable += sum(named[name].numel for name in whole_matrices(named, family))
        total = {"params": source.parameters, "bytes": source.bytes}
        left = {"params": checkpoint.parameters, "bytes": checkpoint.bytes}
        if budget == "flops":
            each, left["flops"] = flops_of(checkpoint)
            total["flops"] = left["flops"] if source is checkpoint else flops_of(source)[1]
            for group in GROUPS:
                unit[group]["flops"] = each[group]
        most = {g: max(block[g] for block in checkpoint.block_units) for g in GROUPS}
        prices: dict[str, dict[str, Sequence[int]]] = {
            measure: {g: [n * unit[g][measure] for n in range(most[g] + 1)] for g in GROUPS}
            for measure in total
        }
        rest = {
            measure: whole
            - sum(block[g] * unit[g][measure] for block in checkpoint.block_units for g in GROUPS)
            for measure, whole in left.items()
        }
        if budget not in ("params", "flops"):
            prices["parts"], rest["parts"], total["parts"] = table_of(budget, checkpoint)
        other, hidden = checkpoint.family.container, checkpoint.hidden_size
        biases = checkpoint.blocks * hidden * len(other.zeros) if other else 0
        headers = checkpoint.header_bytes + bool(biases) * checkpoint.blocks * HEADER_ENTRY
        beside = sum(entry.end - entry.begin for entry in checkpoint.side.values())
        added = {"params": biases, "bytes": biases * checkpoint.dtype.itemsize + headers + beside}
        return cls(unit, prices, rest, total, prunable, checkpoint.block_units, added)

    def size(self, widths: Sequence[dict[str, int]], measure: str) -> int:
        """Size of the model with these widths."""
        prices = self.prices[measure]
        return self.rest[measure] + sum(prices[g][w[g]] for w in widths for g in GROUPS)

    def movable(self, measure: str) -> int:
        """What --keep-blocks is a share of: the projections' weights, or what all units cost."""
        if measure == "params":
            return self.prunable
        return self.total[measure] - self.rest[measure]


def aim_of(target: Target, costs: Costs) -> tuple[float, int]:
    """The size that is asked for and the present size, in the target's measure."""
    if not target.hard and not 0 < target.value < 1:
        raise InputError(f"--{target.kind} must lie between 0 and 1, not {target.value:g}.")
    whole = costs.total[target.measure]
    if target.kind == "keep":
        aim = target.value * whole
    elif target.kind == "keep-blocks":
        aim = whole - (1 - target.value) * costs.movable(target.measure)
    else:
        aim = target.value - costs.added[target.kind]
        if not 0 < target.value < whole:
            raise InputError(f"{target.flag} must lie between 0 and the model's {whole:,}.")
    return aim, whole


def unit_of(target: Target, costs: Costs) -> int:
    """What a size is a share of where it is held against the target, in its measure."""
    if target.kind == "keep-blocks":
        return costs.movable(target.measure)
    return costs.total[target.measure]


def miss_of(target: Target, costs: Costs, size: float) -> float:
    """By what share of its unit a size is above the target; negative where it is below."""
    return (size - aim_of(target, costs)[0]) / unit_of(target, costs)


def meets(target: Target, costs: Costs, size: float) -> bool:
    """Whether a model of this size may be the result: cut, and no more than half a point above a share,
    nor above a bound at all.
    """
    aim, whole = aim_of(target, costs)
    return size < whole and size <= aim + (0 if target.hard else CLOSE * unit_of(target, costs))


def reached(target: Target, costs: Costs, size: float) -> float:
    """A size in the target's unit."""
    if target.kind == "keep":
        return size / costs.total[target.measure]
    if target.kind == "keep-blocks":
        return 1 - (costs.total[target.measure] - size) / costs.movable(target.measure)
    return size
