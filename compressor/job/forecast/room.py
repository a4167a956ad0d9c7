"""How much memory and disk a job needs at most."""

from dataclasses import dataclass

import psutil
import torch

from compressor.config.choices import needs_text
from compressor.config.repair import KINDS
from compressor.evaluation.reference import LOGITS
from compressor.job.forecast.stages import Job
from compressor.job.settings import Settings, wanted_results
from compressor.job.widths import open_alignment
from compressor.model.checkpoint import Checkpoint
from compressor.model.exact_logits import ROWS
from compressor.planning.allocation import protected
from compressor.planning.costs import Costs
from compressor.planning.target import Target
from compressor.planning.uniform import solve
from compressor.recovery.precision import held_dtype
from compressor.repair.refine import LOGITS_ROWS, STEP_TOKENS
from compressor.scoring.selection import FINE_CHANNELS

FLOAT = 4  # bytes
HELD = 1.25  # of what is needed at once: allocators keep some of what was freed
FRESH = 330 << 20  # of a process that has imported torch and transformers
TRAINED = 4 + 4 + 4 + 8  # bytes of a weight in training: start, now, gradient, and AdamW's two
COPIES = 7  # of logits that are compared: both, their logarithms, probabilities, products
STATES = 24  # as wide as the stream or a third of the FFN, that a training keeps of a token


@dataclass(frozen=True)
class Disk:
    """Bytes: what stays in the end, and what is there at once meanwhile."""

    stays: int
    at_most: int


def results(
    settings: Settings, checkpoint: Checkpoint
) -> list[tuple[str, Target, Settings, list[dict[str, int]]]]:
    """Name, target, settings and widths of every result, as a split that is equal in all blocks has
    them: others come out about as large.
    """
    protect = protected(settings.protect, checkpoint)
    return [
        (name, target, own, solve(target, checkpoint, widths, protect))
        for name, target, own in wanted_results(settings, checkpoint.family)
        for widths in [open_alignment(own, checkpoint, target).lattice]
    ]


def disk(settings: Settings, checkpoint: Checkpoint, wanted: list | None = None) -> Disk:
    """Without a cut the result is as large as the source, or is made of such a copy."""
    if settings.weights.single or not settings.cuts:
        joint = settings.weights.single and settings.quantization.wanted
        return Disk(checkpoint.bytes, checkpoint.bytes * (1 + joint))
    costs, sizes = Costs.of(checkpoint), []
    for _, _, own, widths in wanted or results(settings, checkpoint):
        padded = own.layout == "padded"
        sizes.append(checkpoint.bytes if padded else costs.size(widths, "bytes"))
    changed = settings.recovery.method != "none" or settings.quantization.wanted
    # Repaired blocks until the cut is complete; the cut until what is made of it is.
    more = max(sizes) if settings.repair != "none" or changed else 0
    return Disk(sum(sizes), sum(sizes) + more)


def memory(job: Job, dtype: torch.dtype, in_files: bool) -> int:
    """Bytes of host memory at most, from what this process has now; in_files: as activations are."""
    checkpoint, settings = job.checkpoint, job.settings
    here = psutil.Process().memory_info().rss
    hidden, blocks = checkpoint.hidden_size, checkpoint.blocks
    weights = Costs.of(checkpoint).prunable // blocks  # of a block
    outer = (checkpoint.parameters - weights * blocks) * dtype.itemsize
    tokens = max(job.calibrating, job.measuring)
    states = 0 if in_files else settings.kept_states(blocks) * tokens * hidden * dtype.itemsize
    streamed = 2 * weights * dtype.itemsize + states
    head = outer + COPIES * FLOAT * LOGITS
    needs = [streamed + outer]
    widest = max(checkpoint.units["ffn"] * checkpoint.channel_sizes["c"], hidden)
    if job.measuring:
        needs.append(streamed + head + outer)
    if job.wanted and needs_text(settings.select, settings.kv_cost):
        number = 8 if widest <= FINE_CHANNELS else FLOAT
        needs.append(streamed + widest**2 * (3 * number + FLOAT))
    kind = KINDS.get(settings.repair) if job.wanted else None
    if kind and kind.weights:
        needs.append(streamed + FLOAT * (4 * widest**2 + 3 * widest * hidden))
    if kind and kind.refined:
        step = min(STEP_TOKENS, tokens) * STATES * max(hidden, widest // 3) * FLOAT
        logits = outer + COPIES * FLOAT * LOGITS_ROWS * checkpoint.vocabulary
        needs.append(streamed + TRAINED * weights + step + logits)
    if settings.verify:  # in a process of its own
        needs.append(FRESH + outer + ROWS * FLOAT * max(hidden, widest) + streamed - states)
    if job.data is not None:
        on_cpu = settings.on_device == "cpu"
        held = held_dtype(checkpoint.dtype, on_cpu, settings.dtype).itemsize
        a_part = settings.recovery.batch / settings.recovery.accumulate
        a_part *= job.data.tokens / len(job.data.train)
        kept = a_part * (blocks * STATES * max(hidden, widest // 3) + 3 * checkpoint.vocabulary)
        needs.append(int(checkpoint.parameters * held + kept * FLOAT))
    return here + int(HELD * max(needs))
