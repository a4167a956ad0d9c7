"""How long the stages of a job take: what they do, in steps that were timed (`samples.py`).

What is not forecast has None for its seconds: how long it takes depends on what is found (allocations
that are measured, learned clipping, `--kv-cost measured`), and is known from its first block on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from compressor.config.choices import ALLOCATIONS, needs_text
from compressor.config.repair import KINDS
from compressor.job.forecast.samples import Bench
from compressor.job.schedule import Part
from compressor.job.settings import Settings
from compressor.model.checkpoint import Checkpoint
from compressor.planning.target import Target
from compressor.recovery.data import RecoveryData
from compressor.repair.refine import EPOCHS, STEP_TOKENS, TRIAL, TRIAL_STEPS
from compressor.repair.streaming import HELD_BACK
from compressor.scoring.methods import METHODS
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
class Job:
    """What a job is asked to do, as far as it takes time. wanted: name, target, settings and widths of
    every result.
    """

    settings: Settings
    checkpoint: Checkpoint
    calibration: TokenSet | None
    evaluation: TokenSet | None
    data: RecoveryData | None
    wanted: Sequence[tuple[str, Target, Settings, Widths]]

    @property
    def calibrating(self) -> int:
        """Tokens that the blocks see, to score and to repair."""
        return self.calibration.tokens if self.calibration else 0

    @property
    def measuring(self) -> int:
        return self.evaluation.tokens if self.evaluation else 0


def stages(job: Job, bench: Bench) -> Iterator[Part]:
    """The stages in their order."""
    blocks, forward = job.checkpoint.blocks, bench.forward()
    predicted = bench.predicted()
    measured = job.measuring * (blocks * forward + predicted)
    yield from choosing(job, bench, forward, predicted)
    if job.measuring:
        yield Part("evaluate", measured)
    widened = bench.widened() * job.checkpoint.parameters * len(PROMPTS)
    repaired: dict[tuple, Part] = {}  # by widths and kind: layouts share them
    for name, _, settings, widths in job.wanted:
        share = shares(job.checkpoint, widths)
        key = (settings.repair, tuple(sorted(widths[0].items())))
        if ALLOCATIONS[settings.allocate].measured:
            yield Part("compare", None, name)
        written = DRAWN + job.checkpoint.bytes * share / WRITTEN
        if settings.repair == "none":
            yield Part("write", written, name)
        else:
            if key not in repaired:
                repaired[key] = repair(job, bench, forward, widths)
            alone = repaired[key]
            yield Part("repair", alone.seconds + written, name, alone.more)
        if settings.verify:
            yield Part("verify", FRESH + (1 + share) * widened, name)
        if job.measuring:
            yield Part("evaluate", measured * share + job.measuring * predicted, name)
        if job.data is not None:
            yield Part("recover", recovery(job, forward * share, forward, predicted), name)
            yield from ending(job, name, FRESH + share * widened, measured * share)
        if settings.quantization.wanted:
            yield Part("quantize", None if settings.quantization.learns else written, name)
            yield from ending(job, name, FRESH + share * widened, measured * share)


def stages_of_weights(job: Job, bench: Bench) -> Iterator[Part]:
    """Of zeroing single weights, and of quantising a source as it is."""
    settings, blocks, forward = job.settings, job.checkpoint.blocks, bench.forward()
    measured = job.measuring * (blocks * forward + bench.predicted())
    verified = FRESH + bench.widened() * job.checkpoint.parameters * len(PROMPTS)
    if job.measuring:
        yield Part("evaluate", measured)
    if settings.weights.single:
        pruned = None
        if settings.method == "besa":  # every sequence is one step
            pruned = blocks * job.calibrating * (bench.trained() + BACKWARD * forward)
        yield Part("prune", pruned)
        yield from ending(job, "", verified, measured)
    if settings.quantization.wanted:
        learns = settings.quantization.learns and not settings.weights.single
        yield Part("quantize", None if learns else job.checkpoint.bytes / WRITTEN)
        yield from ending(job, "", verified, measured)


def ending(job: Job, name: str, verified: float, measured: float) -> Iterator[Part]:
    """A result that has changed is measured and verified again."""
    if job.measuring:
        yield Part("evaluate", measured, name)
    if job.settings.verify:
        yield Part("verify", verified, name)


def shares(checkpoint: Checkpoint, widths: Widths) -> float:
    """What is left of the blocks' work."""
    left = sum(n for block in widths for n in block.values())
    return left / sum(n for block in checkpoint.block_units for n in block.values())


def choosing(job: Job, bench: Bench, forward: float, predicted: float) -> Iterator[Part]:
    """Scores and selection."""
    settings, blocks, tokens = job.settings, job.checkpoint.blocks, job.calibrating
    method = METHODS[settings.method]
    looks = method.wants(method.check_mode(settings.mode))
    if method.observe is not None:
        there = bench.scored(settings.method, settings.mode) + forward
        yield Part("score", tokens * (blocks * there + BACKWARD * predicted))
    elif looks:
        yield Part("score", blocks * tokens * bench.scored(settings.method, settings.mode))
    else:
        yield Part("score", job.checkpoint.bytes / WRITTEN)
    if settings.kv_cost == "measured":
        yield Part("select", None)
    elif needs_text(settings.select, settings.kv_cost):
        each = inputs(bench, job.checkpoint.units)
        summed = sum(bench.summed(n, 0) for n in each.values())
        solved = sum(bench.eliminated(n, job.checkpoint.units[g]) for g, n in each.items())
        yield Part("select", blocks * (tokens * (forward + summed) + solved))
    if ALLOCATIONS[settings.allocate].measured:
        yield Part("allocate", None)


def inputs(bench: Bench, units: Mapping[str, int]) -> dict[str, int]:
    """Channels of the output projection of each group, of so many units."""
    return {group: n * bench.geometry.channels(group) for group, n in units.items()}


def repair(job: Job, bench: Bench, forward: float, widths: Widths) -> Part:
    """Two paths through every block, four regressions, and the training: toward the dense stream, and in
    the last block toward its predictions.
    """
    kind, hidden = KINDS[job.settings.repair], job.checkpoint.hidden_size
    dtype = torch.bfloat16 if bench.stream.dtype == torch.bfloat16 else torch.float32
    each = list(inputs(bench, widths[len(widths) // 2]).values())
    if kind.weights and kind.toward == "dense":
        each += [hidden, hidden]
    share = shares(job.checkpoint, widths)
    a_token = forward * (1 + 3 * share)
    a_block = 0.0
    if kind.weights:
        a_token += sum(bench.summed(n, hidden, dtype) for n in each)
        a_block += sum(bench.regressed(n) for n in each)
    seconds = job.checkpoint.blocks * (job.calibrating * a_token + a_block)
    last = 0.0
    if kind.refined:
        tokens = trained_tokens(job)
        seconds += tokens * share * bench.trained() * job.checkpoint.blocks
        last = tokens * bench.told_apart()
    return Part("repair", seconds + last, more=last)


def trained_tokens(job: Job) -> float:
    """Tokens of all steps of a block's training, those of its trials and of its judging among them."""
    fitted, held = job.calibration.split(HELD_BACK)
    steps, judged = (len(part.batches(STEP_TOKENS)) for part in (fitted, held))
    tried = min(steps, max(TRIAL_STEPS, round(TRIAL * steps)))
    epochs = job.settings.refine_epochs or EPOCHS
    each = fitted.tokens / steps
    return each * (TRIALS * tried + epochs * steps + OF_TRAINING * JUDGED * judged)


def recovery(job: Job, forward: float, source: float, predicted: float) -> float:
    """All steps, and what a teacher makes of the text; forward: of the cut model."""
    options, blocks, data = job.settings.recovery, job.checkpoint.blocks, job.data
    a_sequence = data.tokens / len(data.train)
    tokens = options.steps * options.batch * a_sequence
    seconds = tokens * BACKWARD * (blocks * forward + predicted)
    if options.method == "distill":
        seconds += data.tokens * (blocks * source + predicted)
    return seconds
