"""The stage `score`: every unit of a checkpoint, by one pass over its blocks, or two."""

from collections.abc import Callable
from dataclasses import asdict

import torch

from compressor.blocks import BlockStream
from compressor.calibration import TokenSet
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.gradients import backward
from compressor.methods import METHODS, Method
from compressor.methods.hywia import Grains
from compressor.methods.statistics import BlockStatistics, Geometry, only_units
from compressor.scores import Scores, best

SEED_STRIDE = 100_003  # blocks of one seed share no stream with blocks of the next
Progress = Callable[[int, int], None]
Block = dict[str, torch.Tensor]


def score(
    checkpoint: Checkpoint,
    method: str,
    mode: str | None = None,
    tokens: TokenSet | None = None,
    stream: BlockStream | None = None,
    seed: int = 0,
    kept_units: list[dict[str, int]] | None = None,
    progress: Progress = lambda done, total: None,
    grains: Grains | None = None,
) -> Scores:
    """Score every unit of a checkpoint.

    Methods that look at activations need `tokens` and `stream`. With `kept_units` (units to keep,
    per block and group) each block passes on what it computes after being cut to them by its own scores
    (`--statistics pruned`); without, every block sees the dense model's activations. grains: what
    weighs gradients, for methods that do, instead of the method's own.
    """
    chosen = METHODS[method]
    mode = chosen.check_mode(mode)
    grains = grains or chosen.grains
    notes = []
    if mode == "attention" and len(tokens.sequences) == 1:
        mode = "fixed:0.5"
        notes.append(
            "One calibration sequence has no variance to attend to, so coarse and fine importance "
            "were weighed equally (fixed:0.5); give more --samples."
        )
    geometry = Geometry.of(checkpoint)
    for name in checkpoint.outer_tensors():
        check_finite(name, checkpoint.read([name])[name])
    parts: dict[str, list[Block]] = {}
    if chosen.observe is not None:
        blocks = observe_backward(checkpoint, chosen, grains, geometry, tokens, stream, progress)
        if chosen.fuse is not None:
            fused = chosen.fuse(blocks, mode)
            blocks = fused.scores
            parts = {"alpha": fused.alpha, **fused.parts}
        blocks = [finished(block, method, index) for index, block in enumerate(blocks)]
    else:

        def rate(index: int, weights: Block, statistics: dict) -> Block:
            found = chosen.score(weights, statistics, geometry, mode, seed * SEED_STRIDE + index)
            progress(index + 1, checkpoint.blocks)
            return finished(found, method, index)

        if wanted := chosen.wants(mode):
            blocks = rate_forward(checkpoint, wanted, geometry, tokens, stream, rate, kept_units)
        else:
            blocks = rate_weights(checkpoint, rate)
    return Scores(
        blocks,
        {
            "method": method,
            "mode": mode,
            "grains": grains and asdict(grains),
            "seed": seed,
            "source": str(checkpoint.path),
            "fingerprint": checkpoint.fingerprint,
            "statistics": "pruned" if kept_units else "dense",
            "calibration": tokens.protocol if tokens and chosen.wants(mode) else None,
            "notes": notes,
        },
        {name: [as_float32(block) for block in part] for name, part in parts.items()},
    )


def rate_weights(checkpoint: Checkpoint, rate) -> list[Block]:
    """Scores of methods that look at weights alone."""
    blocks = []
    for index in range(checkpoint.blocks):
        weights = checkpoint.read_block(index)
        check_block(checkpoint, index, weights)
        blocks.append(rate(index, weights, {}))
    return blocks


def rate_forward(
    checkpoint: Checkpoint,
    wanted: frozenset[str],
    geometry: Geometry,
    tokens: TokenSet,
    stream: BlockStream,
    rate,
    kept_units: list[dict[str, int]] | None,
) -> list[Block]:
    """Scores of methods that look at weights and activations, from one forward pass."""
    blocks = []
    batches = tokens.batches()

    def visit(index: int, layer, forward) -> None:
        weights = dict(layer.state_dict())
        check_block(checkpoint, index, weights)
        with BlockStatistics(layer, geometry, wanted) as statistics:
            order = forward()
            for batch in batches:
                statistics.mask = batch.mask.to(stream.device)
                next(order)
            next(order, None)
        scores = rate(index, weights, statistics.means(len(tokens.sequences)))
        blocks.append(scores)
        if kept_units is not None:
            kept = {g: best(s, kept_units[index][g]) for g, s in scores.items()}
            with only_units(layer, geometry, kept):
                for _ in forward():
                    pass

    stream.run([b.ids for b in batches], visit).discard()
    return blocks


def observe_backward(
    checkpoint: Checkpoint,
    method: Method,
    grains: Grains | None,
    geometry: Geometry,
    tokens: TokenSet,
    stream: BlockStream,
    progress: Progress,
) -> list[Block]:
    """What a method keeps of every block's backward, one sequence after the other."""
    found: list[Block] = [{} for _ in range(checkpoint.blocks)]

    def visit(index: int, layer, steps) -> None:
        check_block(checkpoint, index, dict(layer.state_dict()))
        with method.observe(layer, geometry, index, grains) as observer:
            for i in steps():
                observer.end_sequence(len(tokens.sequences[i]) - 1)
            found[index] = observer.reduced()
        progress(checkpoint.blocks - index, checkpoint.blocks)

    backward(stream, [s[None] for s in tokens.sequences], visit)
    return found


def check_block(checkpoint: Checkpoint, index: int, weights: Block) -> None:
    for name, tensor in weights.items():
        check_finite(checkpoint.block_name(index, name), tensor)


def finished(block: Block, method: str, index: int) -> Block:
    """A block's scores as they are kept: float32 on the CPU, all finite."""
    for group, values in block.items():
        check_finite(f"The {method} score of {group} in block {index}", values)
    return as_float32(block)


def as_float32(block: Block) -> Block:
    return {group: values.float().cpu() for group, values in block.items()}


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Refuse NaN and infinity, by name."""
    if tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
        raise InputError(f"{name} holds NaN or infinite values; the checkpoint is damaged.")
