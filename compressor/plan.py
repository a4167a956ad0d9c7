"""`Plan`: which units stay; the target it was made for, and what units cost."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.scores import GROUPS


@dataclass(frozen=True)
class Target:
    """What to reach: `kind` is keep, keep-blocks, params or bytes; `value` in that unit."""

    kind: str
    value: float

    @property
    def measure(self) -> str:
        """What sizes are counted in: params or bytes."""
        return "bytes" if self.kind == "bytes" else "params"


@dataclass
class Plan:
    """`blocks[b][group]` is the sorted list of kept units; `about` reproduces it."""

    blocks: list[dict[str, list[int]]]
    about: dict = field(default_factory=dict)

    def widths(self) -> list[dict[str, int]]:
        return [{g: len(kept) for g, kept in block.items()} for block in self.blocks]

    def width_range(self, group: str) -> str:
        """`64`, or `32 to 96` where blocks differ."""
        counts = [w[group] for w in self.widths()]
        least, most = min(counts), max(counts)
        return f"{least}" if least == most else f"{least} to {most}"

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Plan":
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(value["blocks"], value["about"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not a plan: {error!r}.") from error

    def check(self, checkpoint: Checkpoint) -> None:
        """The plan's indices exist in the checkpoint, which may be a sibling of the scored one."""
        if len(self.blocks) != checkpoint.blocks:
            raise InputError(
                f"The plan is for {len(self.blocks)} blocks; {checkpoint.path} has "
                f"{checkpoint.blocks}."
            )
        for index, block in enumerate(self.blocks):
            for group, units in checkpoint.block_units[index].items():
                kept = block.get(group) or []
                if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= units:
                    raise InputError(
                        f"The plan's {group} list of block {index} is not a sorted, non-empty "
                        f"list of indices below {units}."
                    )


@dataclass(frozen=True)
class Costs:
    """What a unit of each group costs, and what the model has besides, in parameters and bytes."""

    unit: dict[str, dict[str, int]]  # unit[group]["params" | "bytes"], of one block
    total: dict[str, int]  # of the model
    prunable: int  # weights of the blocks' projections, in parameters
    block_units: list[dict[str, int]]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Costs":
        unit, prunable = {}, 0
        for group, slices in checkpoint.family.groups().items():
            owned = [
                checkpoint.tensors[name]
                for part in slices
                if (name := checkpoint.block_name(0, part.tensor)) in checkpoint.tensors
            ]
            units = checkpoint.block_units[0][group]
            unit[group] = {
                "params": sum(t.numel for t in owned) // units,
                "bytes": sum(t.end - t.begin for t in owned) // units,
            }
            weights = sum(t.numel for t in owned if len(t.shape) == 2) // units
            prunable += weights * sum(own[group] for own in checkpoint.block_units)
        total = {"params": checkpoint.parameters, "bytes": checkpoint.bytes}
        return cls(unit, total, prunable, checkpoint.block_units)

    def size(self, widths: Sequence[dict[str, int]], measure: str) -> int:
        """Size of the model with these widths."""
        pairs = list(zip(self.block_units, widths, strict=True))
        lost = sum((units[g] - w[g]) * self.unit[g][measure] for units, w in pairs for g in GROUPS)
        return self.total[measure] - lost


def limit_of(target: Target, costs: Costs) -> tuple[float, int]:
    """The largest allowed size and the present size, in the target's measure."""
    if target.kind in ("keep", "keep-blocks") and not 0 < target.value < 1:
        raise InputError(f"--{target.kind} must lie between 0 and 1, not {target.value:g}.")
    whole = costs.total[target.measure]
    if target.kind == "keep":
        limit = target.value * whole
    elif target.kind == "keep-blocks":
        limit = whole - (1 - target.value) * costs.prunable
    else:
        limit = target.value
        if not 0 < limit < whole:
            raise InputError(
                f"--target-{target.kind} is {limit:,.0f}, but must lie between 0 and the model's "
                f"{whole:,}."
            )
    return limit, whole


def reached(target: Target, costs: Costs, size: int) -> float:
    """A size in the unit the target was given in."""
    if target.kind == "keep":
        return size / costs.total["params"]
    if target.kind == "keep-blocks":
        return 1 - (costs.total["params"] - size) / costs.prunable
    return size
