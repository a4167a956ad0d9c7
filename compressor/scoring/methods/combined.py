"""What a method makes of all blocks together, once it has observed each of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from compressor.model.stream import BlockStream
from compressor.text.tokens import TokenSet

Blocks = list[dict[str, torch.Tensor]]  # of every block and group [units] or [rows, units]


@dataclass(frozen=True)
class Calibration:
    """What was scored on, for a method that looks at it once more. saved: where probes are kept."""

    tokens: TokenSet
    stream: BlockStream
    seed: int = 0
    saved: Path | None = None


@dataclass(frozen=True)
class Combined:
    """Scores of all blocks, and how they came about.

    parts: the scores that they were made of, by name; rates: how much of a part is in a unit's score,
    from 0 to 1, by the part's name. mode: the one that was used, which may not be the one that was asked
    for; notes: what a user should know of it.
    """

    scores: Blocks
    mode: str
    parts: Mapping[str, Blocks] = field(default_factory=dict)
    rates: Mapping[str, Blocks] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
