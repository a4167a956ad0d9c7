"""The stage `score`: every unit of a checkpoint, by one pass over its blocks, or two."""

from collections.abc import Callable, Mapping
from dataclasses import asdict

import torch

from compressor.config.seeding import of_block
from compressor.errors import InputError
from compressor.model.families import Family
from compressor.model.finite import check_block, check_outer
from compressor.model.gradients import backward
from compressor.model.passes import Passing, on_cpu, pass_over
from compressor.model.pauses import Pauses
from compressor.model.ranks import ALONE
from compressor.model.saved_blocks import finished_block, keep_block
from compressor.model.source import Source
from compressor.model.stream import BlockStream
from compressor.model.units import BlockGeometry, only_units
from compressor.scoring.methods import METHODS, Calibration, Combined, Method
from compressor.scoring.methods.statistics import BlockStatistics
from compressor.scoring.scores import Scores, best, of_every_group
from compressor.text.tokens import TokenSet

Block = dict[str, torch.Tensor]
Rate = Callable[[int, Block, dict], Block]  # of a block's number, weights and statistics


def score(
    checkpoint: Source,
    method: str | Method,
    mode: str | None = None,
    tokens: TokenSet | None = None,
    stream: BlockStream | None = None,
    seed: int = 0,
    kept_units: list[dict[str, int]] | None = None,
    passing: Passing = Passing(),
) -> Scores:
    """Score every unit of a checkpoint.

    Methods that look at activations need `tokens` and `stream`. With `kept_units` (units to keep,
    per block and group) each block passes on what it computes after being cut to them by its own scores
    (statistics of the pruned model); without, every block sees the dense model's activations. Finished
    blocks are kept in the folder of `passing`, and taken from it if they are there.
    """
    chosen = METHODS[method] if isinstance(method, str) else method
    mode = chosen.check_mode(mode)
    check_outer(checkpoint)

    def rate(index: int, weights: Block, statistics: dict) -> Block:
        geometry = BlockGeometry.of(checkpoint, index)
        scores = chosen.score(weights, statistics, geometry, mode, of_block(seed, index))
        return finished(scores, chosen.name, index)

    wanted = chosen.wants(mode)
    if chosen.observe is not None:
        blocks = observe_backward(checkpoint, chosen, tokens, stream, passing)
    elif wanted:
        blocks = rate_forward(checkpoint, wanted, tokens, stream, rate, kept_units, passing)
    else:
        blocks = rate_weights(checkpoint, rate, passing)
    combined = Combined(blocks, mode)
    if chosen.combine is not None:
        ranks, alone = (stream.ranks, stream.shared(ALONE)) if stream else (ALONE, None)
        given = Calibration(tokens, alone, seed, passing.saved)
        combined = ranks.told(lambda: chosen.combine(blocks, mode, given))
    return Scores(
        [
            of_every_group(finished(block, chosen.name, index))
            for index, block in enumerate(combined.scores)
        ],
        {
            "method": chosen.name,
            "mode": combined.mode,
            "grains": chosen.grains and asdict(chosen.grains),
            "seed": seed,
            "source": checkpoint.label,
            "fingerprint": checkpoint.fingerprint,
            "statistics": "pruned" if kept_units else "dense",
            **about_experts(checkpoint.family),
            "calibration": tokens.protocol if tokens and wanted else None,
            "notes": combined.notes,
        },
        wholly_float32(combined.parts),
        wholly_float32(combined.rates),
    )


def about_experts(family: Family) -> dict:
    """What later stages are told of the units of a mixture."""
    return {"experts": "channels"} if family.experts and family.experts.split else {}


def wholly_float32(named: Mapping[str, list[Block]]) -> dict[str, list[Block]]:
    return {
        name: [of_every_group(as_float32(block)) for block in blocks]
        for name, blocks in named.items()
    }


def rate_weights(checkpoint: Source, rate: Rate, passing: Passing) -> list[Block]:
    """Scores of methods that look at weights alone."""
    blocks, saved = [], passing.saved
    for index in range(checkpoint.blocks):
        block = finished_block(saved, index)
        if block is None:
            weights = checkpoint.read_block(index)
            check_block(checkpoint, index, weights)
            block = on_cpu(rate(index, weights, {}))
            keep_block(saved, index, block)
        blocks.append(block)
        passing.progress(index + 1, checkpoint.blocks)
    return blocks


def rate_forward(
    checkpoint: Source,
    wanted: frozenset[str],
    tokens: TokenSet,
    stream: BlockStream,
    rate: Rate,
    kept_units: list[dict[str, int]] | None,
    passing: Passing,
) -> list[Block]:
    """Scores of methods that look at weights and activations, from one forward pass."""
    ranks = stream.ranks
    batches = TokenSet(ranks.share(tokens.sequences)).batches(stream.batch_tokens)

    def find(index: int, layer, forward) -> Block:
        geometry = BlockGeometry.of(checkpoint, index)
        weights = dict(layer.state_dict())
        check_block(checkpoint, index, weights)
        with BlockStatistics(layer, geometry, wanted) as statistics:
            order = forward()
            for batch in batches:
                statistics.batch = batch
                next(order)
            next(order, None)
        statistics.add_up(ranks)
        return ranks.told(lambda: rate(index, weights, statistics.means(len(tokens.sequences))))

    def go_on_pruned(index: int, layer, forward, scores: Block) -> None:
        parts = {"attention": 1, "ffn": checkpoint.ffn_parts}
        kept = {g: best(s, kept_units[index][g], parts[g]) for g, s in scores.items()}
        with only_units(layer, BlockGeometry.of(checkpoint, index), kept):
            for _ in forward():
                pass

    go_on = None if kept_units is None else go_on_pruned
    return pass_over(stream, [b.ids for b in batches], find, passing, go_on)


def observe_backward(
    checkpoint: Source,
    method: Method,
    tokens: TokenSet,
    stream: BlockStream,
    passing: Passing,
) -> list[Block]:
    """What a method keeps of every block's backward, one sequence after the other."""
    saved = passing.saved
    blocks = [finished_block(saved, index) for index in range(checkpoint.blocks)]

    def visit(index: int, layer, steps) -> None:
        if blocks[index] is None:
            geometry = BlockGeometry.of(checkpoint, index)
            check_block(checkpoint, index, dict(layer.state_dict()))
            with method.observe(layer, geometry, index, method.grains) as observer:
                for i in steps():
                    observer.end_sequence(len(tokens.sequences[i]) - 1)
                blocks[index] = on_cpu(observer.reduced())
            keep_block(saved, index, blocks[index])
        else:
            for _ in steps():
                pass
        passing.progress(checkpoint.blocks - index, checkpoint.blocks)

    if None in blocks:
        pauses = Pauses(saved)
        backward(stream, [s[None] for s in tokens.sequences], visit, pauses)
        pauses.over()
    return blocks


def finished(block: Block, method: str, index: int) -> Block:
    """A block's scores as they are kept: float32 on the CPU, all finite."""
    narrow = as_float32(block)
    for group, values in narrow.items():
        if not values.isfinite().all():
            raise InputError(
                f"The {method} score of {group} in block {index} is not finite, though its weights are: "
                "they are too large; try another --method, or --dtype float32."
            )
    return narrow


def as_float32(block: Block) -> Block:
    return {group: values.float().cpu() for group, values in block.items()}
