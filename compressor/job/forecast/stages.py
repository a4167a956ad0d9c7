"""How long the stages of a job take: what they do, in steps that were timed (`samples.py`).

What is not forecast has None for its seconds: how long it takes depends on what is found (allocations
that are measured, learned clipping, `--kv-cost measured`), and is known from its first block on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from compressor.config.amounts import AUTO
from compressor.config.choices import ALLOCATIONS
from compressor.config.job import JobConfig
from compressor.config.repair import KINDS
from compressor.job.forecast.samples import Bench
from compressor.job.needs import WantedResult, looks
from compressor.job.schedule import Part
from compressor.model.source import Source
from compressor.recovery.data import RecoveryData
from compressor.repairing.refine import EPOCHS, FFN_EPOCHS, STEP_TOKENS, TRIAL, TRIAL_STEPS
from compressor.repairing.streaming import HELD_BACK
from compressor.scoring.methods import METHODS
from compressor.scoring.selection import looked_at, spread
from compressor.text.tokenizer import PROMPTS
from compressor.text.tokens import TokenSet

FRESH = 6.0  # seconds: a process that imports torch and transformers
WRITTEN = 300e6  # bytes a second, of a slow disk
TRIALS = 3  # of a training's rates: where the losses rise again is found at the third, most often
JUDGED = 11  # times that the held-back loss is taken of a block's training
BACKWARD = 3  # a forward and a backward in forwards
OF_TRAINING = 1 / 3  # a held-back loss in steps of a training
DRAWN = 2.0  # seconds: the picture of a result

Widths = Sequence[Mapping[str, int]]


@dataclass(frozen=True)
class Load:
    """What a job is asked to do, as far as it takes time."""

    config: JobConfig
    checkpoint: Source
    calibration: TokenSet | None
    evaluation: TokenSet | None
    data: RecoveryData | None
    wanted: Sequence[WantedResult]

    @property
    def calibrating(self) -> int:
        """Tokens that the blocks see, to score and to repair."""
        return self.calibration.tokens if self.calibration else 0

    @property
    def measuring(self) -> int:
        return self.evaluation.tokens if self.evaluation else 0


def stages(load: Load, bench: Bench) -> Iterator[Part]:
    """The stages in their order."""
    blocks, forward = load.checkpoint.blocks, bench.forward()
    predicted = bench.predicted()
    measured = load.measuring * (blocks * forward + predicted)
    if load.config.plan.drop_blocks != AUTO:
        yield from dropping(load, forward)
    if load.config.plan.keep_hidden is not None:
        yield Part("energy", load.calibrating * blocks * forward)
    if load.config.plan.targets:
        yield from choosing(load, bench, forward, predicted)
    if load.config.plan.drop_blocks == AUTO:
        yield from dropping(load, forward)
        yield Part("depth", None)
    if load.measuring:
        whole = load.checkpoint.whole.blocks
        yield Part("evaluate", load.measuring * (whole * forward + predicted))
    widened = bench.widened() * load.checkpoint.parameters * len(PROMPTS)
    repaired: dict[tuple, Part] = {}  # by widths: layouts share them
    config = load.config
    for result in load.wanted:
        name, widths = result.name, result.widths
        share = shares(load.checkpoint, widths)
        key = tuple(tuple(sorted(width.items())) for width in widths)
        if ALLOCATIONS[config.plan.allocate].measured:
            yield Part("compare", None, name)
        written = DRAWN + load.checkpoint.bytes * share / WRITTEN
        if config.repair.kind == "none":
            yield Part("write", written, name)
        else:
            if key not in repaired:
                repaired[key] = repair(load, bench, forward, widths)
            alone = repaired[key]
            yield Part("repair", alone.seconds + written, name, alone.more)
        if config.runtime.verify:
            yield Part("verify", FRESH + (1 + share) * widened, name)
        if load.measuring:
            yield Part("evaluate", measured * share + load.measuring * predicted, name)
        if load.data is not None:
            yield Part("recover", recovery(load, forward * share, forward, predicted), name)
            yield from ending(load, name, FRESH + share * widened, measured * share)
        if config.quantization.wanted:
            yield Part("quantize", None if config.quantization.learns else written, name)
            yield from ending(load, name, FRESH + share * widened, measured * share)


def stages_of_weights(load: Load, bench: Bench) -> Iterator[Part]:
    """Of zeroing single weights, and of quantising a source as it is."""
    config, blocks, forward = load.config, load.checkpoint.blocks, bench.forward()
    measured = load.measuring * (blocks * forward + bench.predicted())
    verified = FRESH + bench.widened() * load.checkpoint.parameters * len(PROMPTS)
    if load.measuring:
        yield Part("evaluate", measured)
    sparse = config.sparse
    if sparse is not None:
        pruned = None
        if sparse.method == "besa":  # every sequence is one step
            pruned = blocks * load.calibrating * (bench.trained() + BACKWARD * forward)
        yield Part("prune", pruned)
        yield from ending(load, "", verified, measured)
    if config.quantization.wanted:
        learns = config.quantization.learns and sparse is None
        yield Part("quantize", None if learns else load.checkpoint.bytes / WRITTEN)
        yield from ending(load, "", verified, measured)


def ending(load: Load, name: str, verified: float, measured: float) -> Iterator[Part]:
    """A result that has changed is measured and verified again."""
    if load.measuring:
        yield Part("evaluate", measured, name)
    if load.config.runtime.verify:
        yield Part("verify", verified, name)


def shares(checkpoint: Source, widths: Widths) -> float:
    """What is left of the blocks' work."""
    left = sum(n for block in widths for n in block.values())
    return left / sum(n for block in checkpoint.block_units for n in block.values())


def dropping(load: Load, forward: float) -> Iterator[Part]:
    """Which blocks go, by one pass, and the fold: two paths, on one of which blocks are passed again."""
    plan = load.config.plan
    if plan.drop_blocks is None:
        return
    a_pass = load.calibrating * load.checkpoint.whole.blocks * forward
    yield Part("influence", a_pass)
    if plan.drop_blocks != AUTO and ALLOCATIONS[plan.allocate].measured:
        yield Part("choose", None)
    if plan.fold:
        yield Part("fold", 2 * a_pass)


def choosing(load: Load, bench: Bench, forward: float, predicted: float) -> Iterator[Part]:
    """Scores and selection."""
    asked, blocks, tokens = load.config.score, load.checkpoint.blocks, load.calibrating
    method = METHODS[asked.method]
    if method.observe is not None:
        there = bench.scored(asked.method, asked.mode) + forward
        yield Part("score", tokens * (blocks * there + BACKWARD * predicted))
    elif method.combine is not None:  # losses of as many models as there are experts
        yield Part("score", None)
    elif looks(asked):
        rated = looked_at(load.calibration, asked, load.checkpoint.units["ffn"]).tokens
        yield Part("score", blocks * rated * bench.scored(asked.method, asked.mode))
    else:
        yield Part("score", load.checkpoint.bytes / WRITTEN)
    if asked.kv_cost == "measured":
        yield Part("select", None)
    elif asked.needs_text:
        each = inputs(bench, load.checkpoint.units)
        summed = sum(bench.summed(n, 0) for n in each.values())
        solved = sum(bench.eliminated(n, load.checkpoint.units[g]) for g, n in each.items())
        seen = spread(load.calibration, load.checkpoint.units["ffn"]).tokens
        yield Part("select", blocks * (seen * (forward + summed) + solved))
    if ALLOCATIONS[load.config.plan.allocate].measured:
        yield Part("allocate", None)


def inputs(bench: Bench, units: Mapping[str, int]) -> dict[str, int]:
    """Channels of the output projection of each group, of so many units."""
    return {group: n * bench.geometry.channels(group) for group, n in units.items() if n}


def repair(load: Load, bench: Bench, forward: float, widths: Widths) -> Part:
    """All blocks, and in the last one's training the predictions, toward which it goes."""
    kind, before = KINDS[load.config.repair.kind], load.checkpoint.block_units
    pairs = zip(widths, before, strict=True)
    trained = kind.refined or load.checkpoint.family.experts is not None
    trained = trained and not load.checkpoint.channels
    alone = [
        (trained and now["attention"] == was["attention"]) or 0 in was.values()
        for now, was in pairs
    ]

    def seconds(one: bool, epochs: int) -> float:
        return block_repair(load, bench, forward, widths, one, epochs)

    each = {one: seconds(one, FFN_EPOCHS if one else EPOCHS) for one in set(alone)}
    last = trained_tokens(load, EPOCHS) * bench.told_apart() if kind.refined else 0.0
    blocks = sum(each[one] for one in alone[:-1]) + seconds(alone[-1], EPOCHS)
    return Part("repair", blocks + last, more=last)


def block_repair(
    load: Load, bench: Bench, forward: float, widths: Widths, ffn_alone: bool, epochs: int
) -> float:
    """Two paths through a block, a regression of `down_proj` or all four, and the training in so many
    passes over the text, where none are asked for.
    """
    kind, hidden = KINDS[load.config.repair.kind], load.checkpoint.hidden_size
    share = shares(load.checkpoint, widths)
    a_token, a_block = forward * (1 + (2 if ffn_alone else 3) * share), 0.0
    if kind.weights:
        dtype = torch.bfloat16 if bench.stream.dtype == torch.bfloat16 else torch.float32
        fed = inputs(bench, widths[len(widths) // 2])
        each = [fed.get("ffn", hidden)] if ffn_alone else list(fed.values())
        if experts := load.checkpoint.family.experts:
            names = [name for name in load.checkpoint.tensors if name.endswith(experts.down)]
            count, _, channels = load.checkpoint.tensors[names[0]].shape
            left = fed.get("ffn", 0)
            if experts.split:
                left, channels = count, left // count
            each = [channels] * load.checkpoint.config[experts.per_token]  # that a token reaches
            a_block += max(0, left - len(each)) * bench.regressed(channels)
        if kind.toward == "dense" and not ffn_alone:
            each += [hidden, hidden]
        a_token += sum(bench.summed(n, hidden, dtype) for n in each)
        a_block += sum(bench.regressed(n) for n in each)
    trained = 0.0
    if kind.refined:
        trained = trained_tokens(load, epochs) * share * bench.trained(ffn_alone)
    return load.calibrating * a_token + a_block + trained


def trained_tokens(load: Load, epochs: int) -> float:
    """Tokens of all steps of a block's training, those of its trials and of its judging among them.

    epochs: as many as there are where none are asked for.
    """
    fitted, held = load.calibration.split(HELD_BACK)
    steps, judged = (len(part.batches(STEP_TOKENS)) for part in (fitted, held))
    tried = min(steps, max(TRIAL_STEPS, round(TRIAL * steps)))
    epochs = load.config.repair.epochs or epochs
    each = fitted.tokens / steps
    return each * (TRIALS * tried + epochs * steps + OF_TRAINING * JUDGED * judged)


def recovery(load: Load, forward: float, source: float, predicted: float) -> float:
    """All steps, and what a teacher makes of the text; forward: of the cut model."""
    options, blocks, data = load.config.recovery, load.checkpoint.blocks, load.data
    a_sequence = data.tokens / len(data.train)
    tokens = options.steps * options.batch * a_sequence
    seconds = tokens * BACKWARD * (blocks * forward + predicted)
    if options.taught:
        seconds += data.tokens * (blocks * source + predicted)
    return seconds
