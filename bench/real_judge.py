"""Judges a folder by transformers alone, in float32: perplexities, and how far it is from the dense.

    python bench/real_judge.py MODEL --data DATA [--dense DENSE] [--windows 4 --windows 8 --windows 32]

Perplexity of the first windows of WikiText-2's test text, at several counts of them, and of the first
`--part` windows of a sample of C4 and of TinyStories. With `--dense`, of the first `--part` windows of
WikiText-2 also the KL divergence of the model's predictions from the dense model's, in nats a token, and
how often both find the same token the likeliest. Prints JSON.
"""

import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from stock import JUDGED, load, logits_of, windows

TOKENS = 128  # whose predictions are compared at a time: a row of Gemma's has a megabyte


def losses(logits: Iterable[torch.Tensor], rows: torch.Tensor) -> list[float]:
    """Of every window the summed loss of all tokens but its first."""
    pairs = zip(logits, rows, strict=True)
    return [float(cross_entropy(found[0, :-1], row[1:], reduction="sum")) for found, row in pairs]


def perplexity(found: list[float], length: int) -> float:
    mean = sum(found) / (len(found) * (length - 1))
    return math.exp(mean) if mean < 700 else math.inf


@dataclass
class Distance:
    """How far predictions are from the dense model's, summed up window by window."""

    dense: PreTrainedModel
    divergence: float = 0.0
    same: int = 0
    tokens: int = 0

    def along(self, logits: Iterable[torch.Tensor], rows: torch.Tensor) -> Iterator[torch.Tensor]:
        """The same logits, compared on their way with the dense model's of these windows, the first."""
        for place, ours in enumerate(logits):
            if place < len(rows):
                (theirs,) = logits_of(self.dense, rows[place : place + 1])
                self.add(ours[0, :-1], theirs[0, :-1])
            yield ours

    def add(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        for a, b in zip(ours.split(TOKENS), theirs.split(TOKENS), strict=True):
            logs = a.log_softmax(-1), b.log_softmax(-1)
            self.divergence += float(kl_div(*logs, reduction="sum", log_target=True))
            self.same += int((a.argmax(-1) == b.argmax(-1)).sum())
            self.tokens += len(a)

    def told(self) -> dict[str, float]:
        """KL(dense || model) in nats a token, and the share of tokens with the same likeliest one."""
        return {"kl": self.divergence / self.tokens, "top1": self.same / self.tokens}


def main(
    model: Path,
    data: Annotated[Path, typer.Option(help="Folder of the texts.")],
    dense: Annotated[Path | None, typer.Option(help="The model it was made of.")] = None,
    counts: Annotated[list[int], typer.Option("--windows", help="Of WikiText-2.")] = [4, 8, 32],  # noqa: B006
    part: Annotated[int, typer.Option(help="Windows of the other texts.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens of a window.")] = 1024,
) -> None:
    loaded, distance = load(model), Distance(load(dense)) if dense else None
    rows = windows(model, data / JUDGED["wikitext2"], max(*counts, part), length)
    logits = logits_of(loaded, rows)
    found = losses(distance.along(logits, rows[:part]) if distance else logits, rows)
    perplexities = {str(count): perplexity(found[:count], length) for count in counts}
    for name in ("c4", "tinystories"):
        others = windows(model, data / JUDGED[name], part, length)
        perplexities[name] = perplexity(losses(logits_of(loaded, others), others), length)
    told = {"parameters": sum(p.numel() for p in loaded.parameters()), "perplexity": perplexities}
    print(json.dumps(told | (distance.told() if distance else {})))


if __name__ == "__main__":
    typer.run(main)
