"""`Scores`: one float32 number per unit, per block, per group."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from compressor.errors import InputError
from compressor.groups import GROUPS
from compressor.lattice import Lattice

PARTS = ("alpha", "coarse", "fine")
MEASURED = ("errors", "learned", "losses")


@dataclass
class Landscape:
    """errors[block] is float64 [numbers of groups, FFN widths], shares of the output's energy.

    attention, ffn: the numbers and widths, ascending, as in `Lattice`. about: the repair that the
    errors are after, the text, and the prices of `learned`. learned[block], where widths were learned,
    is float64 [prices, groups]: the mean number of units of each group that stay. losses[block], where
    measured, is float64 [cuts]: by how much each of `cuts`, [groups, channels], raises the loss.
    """

    errors: list[torch.Tensor]
    attention: list[int]
    ffn: list[int]
    about: dict = field(default_factory=dict)
    learned: list[torch.Tensor] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)
    cuts: list[tuple[int, int]] = field(default_factory=list)

    def described(self) -> dict:
        """Everything but what is measured, as JSON has it."""
        known = {"attention": self.attention, "ffn": self.ffn, "about": self.about}
        return known | {"cuts": self.cuts}

    def on(self, lattice: Lattice) -> list[torch.Tensor]:
        """The errors on another lattice, which must be a part of this one."""
        missing = sorted({*lattice.ffn} - {*self.ffn}) or sorted(
            {*lattice.attention} - {*self.attention}
        )
        if missing:
            raise InputError(
                f"The errors of cuts were measured on other widths, without {missing[0]}; "
                "score again with this --align, --tp and --container."
            )
        rows = torch.tensor([self.attention.index(n) for n in lattice.attention])
        columns = torch.tensor([self.ffn.index(n) for n in lattice.ffn])
        return [errors[rows][:, columns] for errors in self.errors]


@dataclass
class Scores:
    """`blocks[b][group]` is a float32 tensor [units]; `about` says how it was made.

    `parts` holds lists of the same form by name, of scores that are fused from two (HyWIA): the
    `coarse` and the `fine` one, normalised, and `alpha`, how much of the fused score is coarse.
    `landscape` holds the errors of all cuts of units in the order of these scores, where measured.
    """

    blocks: list[dict[str, torch.Tensor]]
    about: dict = field(default_factory=dict)
    parts: dict[str, list[dict[str, torch.Tensor]]] = field(default_factory=dict)
    landscape: Landscape | None = None

    def save(self, path: Path) -> None:
        tensors = {
            f"{b}.{group}{suffix}": tensor
            for suffix, blocks in (
                ("", self.blocks),
                *((f".{p}", v) for p, v in self.parts.items()),
            )
            for b, block in enumerate(blocks)
            for group, tensor in block.items()
        }
        metadata = {"scores": json.dumps(self.about)}
        if self.landscape is not None:
            for part in MEASURED:
                blocks = getattr(self.landscape, part)
                tensors |= {f"{b}.{part}": found for b, found in enumerate(blocks)}
            metadata["landscape"] = json.dumps(self.landscape.described())
        save_file(tensors, path, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> "Scores":
        try:
            with safe_open(path, framework="pt") as handle:
                metadata = handle.metadata() or {}
                about = json.loads(metadata["scores"])
                names = handle.keys()
                count = 1 + max(int(name.partition(".")[0]) for name in names)

                def read(suffix: str) -> list[dict[str, torch.Tensor]]:
                    return [
                        {g: handle.get_tensor(f"{b}.{g}{suffix}").clone() for g in GROUPS}
                        for b in range(count)
                    ]

                blocks = read("")
                parts = {p: read(f".{p}") for p in PARTS if f"0.{GROUPS[0]}.{p}" in names}
                landscape = None
                if "landscape" in metadata:
                    measured = {
                        part: [
                            handle.get_tensor(f"{b}.{part}").clone()
                            for b in range(count)
                            if f"{b}.{part}" in names
                        ]
                        for part in MEASURED
                    }
                    landscape = Landscape(**measured, **json.loads(metadata["landscape"]))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{path} is not a file of scores: {error}.") from error
        return cls(blocks, about, parts, landscape)


def best(values: torch.Tensor, count: int) -> list[int]:
    """Indices of the `count` largest values, sorted; ties go to the lower index."""
    order = (-values).argsort(stable=True)[:count]
    return sorted(order.tolist())
