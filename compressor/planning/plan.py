"""`Plan`: which units stay."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from compressor.config.json_files import MOST_BYTES_OF_UNITS, read_json
from compressor.config.json_shapes import misfit
from compressor.errors import InputError
from compressor.model.groups import counts

if TYPE_CHECKING:  # targets are judged before torch is imported, which takes seconds
    from compressor.model.source import Source

Kind = TypeVar("Kind", bound="Source")
# Of what is read of a plan's JSON before `check` has seen it.
ABOUT = {
    "dropped": [int],
    "hidden": {"channels": [int]},
    "depth": dict,
    "scores": {"experts": str},
    "units": [dict],
}
SHAPE = {"blocks": [dict], "about": ABOUT}


def dropped_of(source: "Source") -> dict:
    """For a plan's `about`: the blocks, or channels of the stream, that the source has lost, if any."""
    about: dict = {"dropped": source.dropped} if source.dropped else {}
    if source.channels:
        about["hidden"] = {"of": source.whole.hidden_size, "channels": source.channels}
    return about


@dataclass
class Plan:
    """`blocks[b][group]` is the sorted list of kept units; `about` reproduces it."""

    blocks: list[dict[str, list[int]]]
    about: dict = field(default_factory=dict)

    @classmethod
    def whole(cls, source: "Source") -> "Plan":
        """The plan that keeps every unit."""
        return cls(
            [{group: [*range(n)] for group, n in units.items()} for units in source.block_units],
            dropped_of(source),
        )

    @property
    def dropped(self) -> list[int]:
        """The blocks of the source that are not there at all; `blocks` are the others, in order."""
        return list(self.about.get("dropped") or [])

    def seen(self, source: Kind) -> Kind:
        """The source with the units that the plan is of."""
        from compressor.model.experts import with_units

        return with_units(source, (self.about.get("scores") or {}).get("experts"))

    @property
    def channels(self) -> list[int]:
        """The channels of the source's residual stream that stay, where not all do."""
        return list((self.about.get("hidden") or {}).get("channels") or [])

    @property
    def folds(self) -> bool:
        """Whether what the dropped blocks did was folded into others where the plan was made."""
        return bool((self.about.get("depth") or {}).get("folded"))

    def widths(self) -> list[dict[str, int]]:
        return [{g: len(kept) for g, kept in block.items()} for block in self.blocks]

    def widest(self) -> dict[str, int]:
        """The largest number of units of each group in any block."""
        widths = self.widths()
        return {group: max(w[group] for w in widths) for group in widths[0]}

    def width_range(self, group: str) -> str:
        """`64`, or `32 to 96` where blocks differ; those that have none of a group apart."""
        there = counts(self.widths(), group) or {0}
        least, most = min(there), max(there)
        return f"{least}" if least == most else f"{least} to {most}"

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        try:
            value = read_json(Path(path), most=MOST_BYTES_OF_UNITS)
            value = value.get("plan", value)  # of a result's compression.json
            if wrong := misfit(value, SHAPE):
                raise ValueError(wrong)
            blocks = [{g: list(kept) for g, kept in b.items()} for b in value["blocks"]]
            return cls(blocks, dict(value["about"]))
        except InputError as error:
            raise InputError(f"{path} is not a plan: {error}") from error
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} is not a plan: {type(error).__name__}, {error}.") from error

    def check(self, checkpoint: "Source") -> None:
        """The plan is for blocks like the checkpoint's, which may be a sibling of the scored one, and is
        without the blocks that the plan drops.
        """
        if self.dropped != checkpoint.dropped:
            raise InputError(
                f"The plan drops the blocks {self.dropped}, and of {checkpoint.label} are dropped "
                f"{checkpoint.dropped}."
            )
        if self.channels != checkpoint.channels:
            raise InputError(
                f"The plan keeps {len(self.channels) or 'all'} channels of the residual stream, and "
                f"{checkpoint.label} is read with {len(checkpoint.channels) or 'all'}; `compressor cut` "
                "takes such a plan."
            )
        if len(self.blocks) != checkpoint.blocks:
            raise InputError(
                f"The plan is for {len(self.blocks)} blocks; {checkpoint.label} has "
                f"{checkpoint.blocks}."
            )
        made_for = self.about.get("units") or checkpoint.block_units
        if len(made_for) != checkpoint.blocks:
            raise InputError(f"The plan was made for {len(made_for)} blocks of units.")
        for index, (block, widths) in enumerate(zip(made_for, checkpoint.block_units, strict=True)):
            for group, units in widths.items():
                if block.get(group) != units:
                    raise InputError(
                        f"The plan was made for {block.get(group)} units of {group} in block {index}, "
                        f"and {checkpoint.label} has {units}; score it, and make a plan of its own."
                    )
        experts, config = checkpoint.family.experts, checkpoint.config
        fewest = experts.fewest(config) if checkpoint.family.whole_experts else 0
        for index, block in enumerate(self.blocks):
            if 0 < len(block.get("ffn") or []) < fewest:
                raise InputError(
                    f"Every token is sent to {config[experts.per_token]} experts ({experts.per_token}), "
                    f"and the plan keeps {len(block['ffn'])} in block {index}; keep {fewest} at least."
                )
            for group, units in checkpoint.block_units[index].items():
                kept = block.get(group) or []
                if units == 0 and not kept:  # of another kind there
                    continue
                if (
                    not kept
                    or any(type(u) is not int for u in kept)
                    or kept != sorted(set(kept))
                    or kept[0] < 0
                    or kept[-1] >= units
                ):
                    raise InputError(
                        f"The plan's {group} list of block {index} is not a sorted, non-empty "
                        f"list of indices below {units}."
                    )
            if checkpoint.ffn_parts > 1:
                check_each_part(block["ffn"], index, checkpoint)


def check_each_part(kept: list[int], index: int, checkpoint: "Source") -> None:
    """Every expert of a block keeps as many channels, every group of experts as many of these."""
    experts, parts = checkpoint.family.experts, checkpoint.ffn_parts
    width = checkpoint.units["ffn"] // parts
    each = [0] * parts
    for unit in kept:
        each[unit // width] += 1
    least, most = min(each), max(each)
    if least < most and experts.split:
        raise InputError(
            f"The plan keeps {least} channels of an expert of block {index} and {most} of another; all "
            "experts of a model have one width."
        )
    if least < most:
        raise InputError(
            f"The plan keeps {least} experts of a group of block {index} and {most} of another; a "
            "router that chooses among groups has as many in each."
        )
    shared = experts.split and experts.of_shared(checkpoint.config)
    if shared and most and shared % most:
        raise InputError(
            f"The plan keeps {most} channels of every expert, which do not divide the {shared} of the "
            f"shared one; that is so many experts wide ({experts.shared_count}), and stays."
        )
