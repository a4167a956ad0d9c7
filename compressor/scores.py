"""`Scores`: one float32 number per unit, per block, per group; and the stage that computes them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from compressor.blocks import BlockStream
from compressor.calibration import TokenSet
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.gradients import backward
from compressor.methods import METHODS
from compressor.methods.gradient_statistics import GradientStatistics
from compressor.methods.statistics import BlockStatistics, Geometry, only_units

GROUPS = ("attention", "ffn")
SEED_STRIDE = 100_003  # blocks of one seed share no stream with blocks of the next


@dataclass
class Scores:
    """`blocks[b][group]` is a float32 tensor [units]; `about` says how it was made.

    `alpha`, of the same form, is how much of each fused score is its coarse part (HyWIA); `parts`
    holds by name what was fused, `coarse` and `fine`, normalised, of the same form each.
    """

    blocks: list[dict[str, torch.Tensor]]
    about: dict = field(default_factory=dict)
    alpha: list[dict[str, torch.Tensor]] = field(default_factory=list)
    parts: dict[str, list[dict[str, torch.Tensor]]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        named = {"": self.blocks, ".alpha": self.alpha}
        named |= {f".{part}": blocks for part, blocks in self.parts.items()}
        tensors = {
            f"{b}.{g}{suffix}": t
            for suffix, blocks in named.items()
            for b, block in enumerate(blocks)
            for g, t in block.items()
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
                suffixes = {name.split(".")[2] for name in names if name.count(".") == 2}
                alpha = read(".alpha") if "alpha" in suffixes else []
                parts = {part: read(f".{part}") for part in sorted(suffixes - {"alpha"})}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{path} is not a file of scores: {error}.") from error
        return cls(blocks, about, alpha, parts)


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Refuse NaN and infinity, by name."""
    if tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
        raise InputError(f"{name} holds NaN or infinite values; the checkpoint is damaged.")


def score(
    checkpoint: Checkpoint,
    method: str,
    mode: str | None = None,
    tokens: TokenSet | None = None,
    stream: BlockStream | None = None,
    seed: int = 0,
    kept_units: list[dict[str, int]] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Score every unit of a checkpoint in one pass over its blocks.

    Methods that look at activations need `tokens` and `stream`. With `kept_units` (units to keep,
    per block and group) each block passes on what it computes after being cut to them by its own scores
    (`--statistics pruned`); without, every block sees the dense model's activations.
    """
    about = METHODS[method]
    mode = about.check_mode(mode)
    geometry = Geometry.of(checkpoint)
    for name in checkpoint.outer_tensors():
        check_finite(name, checkpoint.read([name])[name])
    blocks: list[dict[str, torch.Tensor]] = []

    def check_block(index: int, weights: dict[str, torch.Tensor]) -> None:
        for name, tensor in weights.items():
            check_finite(checkpoint.block_name(index, name), tensor)

    def finish(index: int, weights: dict[str, torch.Tensor], statistics: dict) -> dict:
        scores = about.score(weights, statistics, geometry, mode, seed * SEED_STRIDE + index)
        scores = {group: s.float().cpu() for group, s in scores.items()}
        for group, values in scores.items():
            check_finite(f"The {method} score of {group} in block {index}", values)
        blocks.append(scores)
        progress(len(blocks), checkpoint.blocks)
        return scores

    alpha: list[dict[str, torch.Tensor]] = []
    if about.fuse is not None:
        reduced = [None] * checkpoint.blocks

        def visit_backward(index: int, layer, steps) -> None:
            check_block(index, dict(layer.state_dict()))
            with GradientStatistics(layer, geometry, index) as statistics:
                for _ in steps():
                    pass
            reduced[index] = about.reduce(statistics.tensors(), geometry)
            progress(checkpoint.blocks - index, checkpoint.blocks)

        backward(stream, [s[None] for s in tokens.sequences], visit_backward)
        fused, alpha = about.fuse(reduced, mode)
        blocks += [{g: s.float() for g, s in block.items()} for block in fused]
        alpha = [{g: a.float() for g, a in block.items()} for block in alpha]
    elif not about.wants(mode):
        for index in range(checkpoint.blocks):
            weights = checkpoint.read_block(index)
            check_block(index, weights)
            finish(index, weights, {})
    else:
        batches = tokens.batches()

        def visit(index: int, layer, forward) -> None:
            weights = dict(layer.state_dict())
            check_block(index, weights)
            with BlockStatistics(layer, geometry, about.wants(mode)) as statistics:
                order = forward()
                for batch in batches:
                    statistics.mask = batch.mask.to(stream.device)
                    next(order)
                next(order, None)
            scores = finish(index, weights, statistics.means(len(tokens.sequences)))
            if kept_units is not None:
                kept = {g: best(s, kept_units[index][g]) for g, s in scores.items()}
                with only_units(layer, geometry, kept):
                    for _ in forward():
                        pass

        stream.run([b.ids for b in batches], visit).discard()
    return Scores(
        blocks,
        {
            "method": method,
            "mode": mode,
            "seed": seed,
            "source": str(checkpoint.path),
            "fingerprint": checkpoint.fingerprint,
            "statistics": "pruned" if kept_units else "dense",
            "calibration": tokens.protocol if tokens and about.wants(mode) else None,
        },
        alpha,
    )


def best(values: torch.Tensor, count: int) -> list[int]:
    """Indices of the `count` largest values, sorted; ties go to the lower index."""
    order = (-values).argsort(stable=True)[:count]
    return sorted(order.tolist())
