"""`Scores`: one float32 number per unit, per block, per group."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from compressor.errors import InputError

GROUPS = ("attention", "ffn")
PARTS = ("alpha", "coarse", "fine")


@dataclass
class Scores:
    """`blocks[b][group]` is a float32 tensor [units]; `about` says how it was made.

    `parts` holds lists of the same form by name, of scores that are fused from two (HyWIA): the
    `coarse` and the `fine` one, normalised, and `alpha`, how much of the fused score is coarse.
    """

    blocks: list[dict[str, torch.Tensor]]
    about: dict = field(default_factory=dict)
    parts: dict[str, list[dict[str, torch.Tensor]]] = field(default_factory=dict)

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
        save_file(tensors, path, metadata={"scores": json.dumps(self.about)})

    @classmethod
    def load(cls, path: Path) -> "Scores":
        try:
            with safe_open(path, framework="pt") as handle:
                about = json.loads((handle.metadata() or {})["scores"])
                names = handle.keys()
                count = 1 + max(int(name.partition(".")[0]) for name in names)

                def read(suffix: str) -> list[dict[str, torch.Tensor]]:
                    return [
                        {g: handle.get_tensor(f"{b}.{g}{suffix}").clone() for g in GROUPS}
                        for b in range(count)
                    ]

                blocks = read("")
                parts = {p: read(f".{p}") for p in PARTS if f"0.{GROUPS[0]}.{p}" in names}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{path} is not a file of scores: {error}.") from error
        return cls(blocks, about, parts)


def best(values: torch.Tensor, count: int) -> list[int]:
    """Indices of the `count` largest values, sorted; ties go to the lower index."""
    order = (-values).argsort(stable=True)[:count]
    return sorted(order.tolist())
