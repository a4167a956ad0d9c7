"""`Scores`: one float32 number per unit, per block, per group."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from compressor.config.json_shapes import misfit
from compressor.errors import InputError
from compressor.model.experts import with_units
from compressor.model.groups import GROUPS
from compressor.model.source import Source

Blocks = list[dict[str, torch.Tensor]]
# Of what is read of the JSON in a file's metadata.
SHAPE = {
    "about": {"source": str, "experts": str, "method": str},
    "parts": [str],
    "rates": [str],
    "measured": {
        "about": {"attention": [int], "ffn": [int], "about": dict, "cuts": [[int]]},
        "names": [str],
    },
}


@dataclass
class Measured:
    """What was measured of cuts in the order of some scores: by name a tensor a block, and about it what
    JSON can say. What it means is said where it is measured.
    """

    about: dict
    tensors: dict[str, list[torch.Tensor]]


@dataclass
class Scores:
    """`blocks[b][group]` is a float32 tensor [units]; `about` says how it was made.

    `parts` holds lists of the same form by name, of scores that are made of several; `rates`, by the
    part's name, how much of a unit's score is of it, from 0 to 1. `source` is what was scored, as long
    as it is in memory: a file of scores does not hold it.
    """

    blocks: Blocks
    about: dict = field(default_factory=dict)
    parts: dict[str, Blocks] = field(default_factory=dict)
    rates: dict[str, Blocks] = field(default_factory=dict)
    measured: Measured | None = None
    source: Source | None = field(default=None, repr=False, compare=False)

    def seen(self, source: Source) -> Source:
        """The source with the units that were scored."""
        return with_units(source, self.about.get("experts"))

    @property
    def place(self) -> str:
        """The folder that was scored, as the scores say it."""
        if not (place := self.about.get("source")):
            raise InputError(
                "The scores do not say what was scored (`source`); name the model: --source, or `model`."
            )
        return place

    def save(self, path: str | Path) -> None:
        kinds = {"": self.blocks}
        kinds |= {f".{name}": blocks for name, blocks in self.parts.items()}
        kinds |= {f".{name}.rate": blocks for name, blocks in self.rates.items()}
        tensors = {
            f"{b}.{group}{suffix}": tensor
            for suffix, blocks in kinds.items()
            for b, block in enumerate(blocks)
            for group, tensor in block.items()
        }
        told = {"about": self.about, "parts": [*self.parts], "rates": [*self.rates]}
        if self.measured is not None:
            for name, blocks in self.measured.tensors.items():
                tensors |= {f"{b}.measured.{name}": tensor for b, tensor in enumerate(blocks)}
            told["measured"] = {"about": self.measured.about, "names": [*self.measured.tensors]}
        # One entry alone: safetensors writes several in any order, so the bytes would differ.
        save_file(tensors, path, metadata={"scores": json.dumps(told)})

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        try:
            with safe_open(path, framework="pt") as handle:
                told = json.loads((handle.metadata() or {})["scores"])
                if wrong := misfit(told, SHAPE):
                    raise ValueError(wrong)
                names = handle.keys()
                count = 1 + max(int(name.partition(".")[0]) for name in names)

                def read(suffix: str) -> Blocks:
                    return [
                        {g: handle.get_tensor(f"{b}.{g}{suffix}").clone() for g in GROUPS}
                        for b in range(count)
                    ]

                scores = cls(
                    read(""),
                    dict(told["about"]),
                    {name: read(f".{name}") for name in told["parts"]},
                    {name: read(f".{name}.rate") for name in told["rates"]},
                )
                if measured := told.get("measured"):
                    tensors = {
                        name: [
                            handle.get_tensor(f"{b}.measured.{name}").clone() for b in range(count)
                        ]
                        for name in measured["names"]
                    }
                    scores.measured = Measured(measured["about"], tensors)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a file of scores: {error}.") from error
        return scores


def of_every_group(block: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A block's scores; of a group that it has no units of, none."""
    return {group: block.get(group, torch.zeros(0)) for group in GROUPS}


def best(values: torch.Tensor, count: int, parts: int = 1) -> list[int]:
    """Indices of the `count` largest values, sorted, as many of each of so many equal parts; ties go to
    the lower index.
    """
    each = (-values).view(parts, len(values) // parts)
    order = each.argsort(stable=True)[:, : count // parts]
    first = torch.arange(parts)[:, None] * each.shape[1]
    return sorted((order.cpu() + first).flatten().tolist())
