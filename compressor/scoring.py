"""The stage `score`: every unit of a checkpoint, by one pass over its blocks, or two."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from compressor.blocks import BlockStream
from compressor.calibration import TokenSet
from compressor.checkpoint import Checkpoint
from compressor.errors import DamagedError
from compressor.gradients import backward
from compressor.journal import finished_block, keep_block
from compressor.methods import METHODS, Method
from compressor.methods.hywia import PARTS, Grains, fitted_share, normalised
from compressor.methods.statistics import BlockStatistics, Geometry, only_units
from compressor.passes import on_cpu, pass_over
from compressor.pauses import Pauses
from compressor.probing import loss_changes_in_parts, sample_probes, spearman
from compressor.scores import Scores, best
from compressor.seeding import of_block

PROBES, PROBE_SEQUENCES = 128, 8  # the work of a few forwards of 128 calibration sequences
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
    saved: Path | None = None,
) -> Scores:
    """Score every unit of a checkpoint.

    Methods that look at activations need `tokens` and `stream`. With `kept_units` (units to keep,
    per block and group) each block passes on what it computes after being cut to them by its own scores
    (`--statistics pruned`); without, every block sees the dense model's activations. grains: what
    weighs gradients, for methods that do, instead of the method's own. saved: a folder where finished
    blocks are kept, and taken from if they are there.
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
    check_outer(checkpoint)
    parts: dict[str, list[Block]] = {}
    if chosen.observe is not None:
        blocks = observe_backward(checkpoint, chosen, grains, tokens, stream, progress, saved)
        if chosen.fuse is not None:
            shares = {}
            if mode == "calibrated":
                shares, said = calibrated_shares(stream, tokens, blocks, seed, saved)
                notes += said
            fused = chosen.fuse(blocks, mode, shares)
            blocks = fused.scores
            parts = {"alpha": fused.alpha, **fused.parts}
        blocks = [finished(block, method, index) for index, block in enumerate(blocks)]
    else:

        def rate(index: int, weights: Block, statistics: dict) -> Block:
            geometry = Geometry.of(checkpoint, index)
            found = chosen.score(weights, statistics, geometry, mode, of_block(seed, index))
            return finished(found, method, index)

        if wanted := chosen.wants(mode):
            blocks = rate_forward(
                checkpoint, wanted, tokens, stream, rate, kept_units, progress, saved
            )
        else:
            blocks = rate_weights(checkpoint, rate, progress, saved)
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


def rate_weights(
    checkpoint: Checkpoint, rate, progress: Progress, saved: Path | None = None
) -> list[Block]:
    """Scores of methods that look at weights alone."""
    blocks = []
    for index in range(checkpoint.blocks):
        found = finished_block(saved, index)
        if found is None:
            weights = checkpoint.read_block(index)
            check_block(checkpoint, index, weights)
            found = on_cpu(rate(index, weights, {}))
            keep_block(saved, index, found)
        blocks.append(found)
        progress(index + 1, checkpoint.blocks)
    return blocks


def rate_forward(
    checkpoint: Checkpoint,
    wanted: frozenset[str],
    tokens: TokenSet,
    stream: BlockStream,
    rate,
    kept_units: list[dict[str, int]] | None,
    progress: Progress,
    saved: Path | None = None,
) -> list[Block]:
    """Scores of methods that look at weights and activations, from one forward pass."""
    batches = tokens.batches()

    def find(index: int, layer, forward) -> Block:
        geometry = Geometry.of(checkpoint, index)
        weights = dict(layer.state_dict())
        check_block(checkpoint, index, weights)
        with BlockStatistics(layer, geometry, wanted) as statistics:
            order = forward()
            for batch in batches:
                statistics.mask = batch.mask.to(stream.device)
                next(order)
            next(order, None)
        return rate(index, weights, statistics.means(len(tokens.sequences)))

    def go_on_pruned(index: int, layer, forward, scores: Block) -> None:
        kept = {g: best(s, kept_units[index][g]) for g, s in scores.items()}
        with only_units(layer, Geometry.of(checkpoint, index), kept):
            for _ in forward():
                pass

    go_on = None if kept_units is None else go_on_pruned
    return pass_over(stream, [b.ids for b in batches], find, saved, progress, go_on)


def observe_backward(
    checkpoint: Checkpoint,
    method: Method,
    grains: Grains | None,
    tokens: TokenSet,
    stream: BlockStream,
    progress: Progress,
    saved: Path | None = None,
) -> list[Block]:
    """What a method keeps of every block's backward, one sequence after the other."""
    found = [finished_block(saved, index) for index in range(checkpoint.blocks)]

    def visit(index: int, layer, steps) -> None:
        if found[index] is None:
            observe(index, layer, steps)
        else:
            for _ in steps():
                pass
        progress(checkpoint.blocks - index, checkpoint.blocks)

    def observe(index: int, layer, steps) -> None:
        geometry = Geometry.of(checkpoint, index)
        check_block(checkpoint, index, dict(layer.state_dict()))
        with method.observe(layer, geometry, index, grains) as observer:
            for i in steps():
                observer.end_sequence(len(tokens.sequences[i]) - 1)
            found[index] = on_cpu(observer.reduced())
        keep_block(saved, index, found[index])

    if None in found:
        pauses = Pauses(saved)
        backward(stream, [s[None] for s in tokens.sequences], visit, pauses)
        pauses.over()
    return found


def calibrated_shares(
    stream: BlockStream,
    tokens: TokenSet,
    blocks: list[Block],
    seed: int,
    saved: Path | None = None,
) -> tuple[dict[str, float], list[str]]:
    """The coarse share of each group by `fitted_share` to measured loss changes, and how well
    coarse, fine and fused rank them (Spearman), in sentences.

    The loss changes of single units are far below the rounding of half precision, so they are
    measured in float32, over a few calibration sequences and all blocks.
    """
    checkpoint = stream.checkpoint
    probes = sample_probes(checkpoint.block_units, PROBES, seed)
    texts = TokenSet(tokens.sequences[:: max(1, len(tokens.sequences) // PROBE_SEQUENCES)])
    wide = BlockStream(checkpoint, stream.device, torch.float32, stream.place)
    blocks = normalised(blocks)
    changes = loss_changes_in_parts(wide, texts.batches(), probes, saved and saved / "probes")
    shares, said = {}, []
    for group in checkpoint.units:
        mine = [i for i, probe in enumerate(probes) if probe[1] == group]
        places = [(probes[i][0], probes[i][2]) for i in mine]
        values = torch.stack([blocks[b][group][: len(PARTS), u] for b, u in places], 1)
        true = changes[mine]
        shares[group] = share = fitted_share(values, true)
        fused = share * values[0] + (1 - share) * values[1]
        found = {"coarse": values[0], "fine": values[1], "fused": fused}
        ranks = ", ".join(f"{name} {spearman(v, true):.2f}" for name, v in found.items())
        said.append(
            f"Calibrated on {len(mine)} masked {group} units: {share:.2f} of the score is coarse; "
            f"Spearman correlation with the loss change: {ranks}."
        )
    return shares, said


def check_block(checkpoint: Checkpoint, index: int, weights: Block) -> None:
    for name, tensor in weights.items():
        check_finite(checkpoint.block_name(index, name), tensor)


def check_outer(checkpoint: Checkpoint) -> None:
    """Of embedding, last norm and head."""
    for name in checkpoint.outer_tensors():
        check_finite(name, checkpoint.read([name])[name])


def check_weights(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint with NaN or infinity anywhere, by the tensor's name; reads all of it."""
    check_outer(checkpoint)
    for index in range(checkpoint.blocks):
        check_block(checkpoint, index, checkpoint.read_block(index))


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
        raise DamagedError(f"{name} holds NaN or infinite values; the checkpoint is damaged.")
