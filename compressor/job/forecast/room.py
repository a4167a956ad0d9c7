"""How much memory and disk a job needs at most."""

from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from compressor.config.job import JobConfig
from compressor.config.layouts import PADDED
from compressor.config.repair import KINDS
from compressor.job.forecast.stages import Load
from compressor.job.needs import WantedResult, kept_states
from compressor.job.opening import chosen_device
from compressor.model.exact_logits import ROWS
from compressor.model.source import Source
from compressor.model.staging import BUFFERS
from compressor.model.stream import logits_rows
from compressor.planning.costs import Costs
from compressor.recovery.precision import held_bytes
from compressor.repairing.refine import STEP_TOKENS
from compressor.scoring.selection import FINE_CHANNELS

FLOAT = 4  # bytes
HELD = 1.25  # of what is needed at once: allocators keep some of what was freed
FRESH = 330 << 20  # of a process that has imported torch and transformers
TRAINED = 4 + 4 + 4 + 8  # bytes of a weight in training: start, now, gradient, and AdamW's two
OF_LOSSES = 16  # copies of the logits in a training toward predictions
COPIES = 7  # of logits that are compared: both, their logarithms, probabilities, products
STATES = 24  # as wide as the stream or a third of the FFN, that a training keeps of a token


@dataclass(frozen=True)
class Disk:
    """Bytes: what stays in the end, and what is there at once meanwhile."""

    stays: int
    at_most: int


def disk(config: JobConfig, checkpoint: Source, wanted: Sequence[WantedResult]) -> Disk:
    """Without a cut the result is as large as the source, or is made of such a copy."""
    if not config.cuts:
        joint = config.sparse is not None and config.quantization.wanted
        return Disk(checkpoint.bytes, checkpoint.bytes * (1 + joint))
    costs, sizes = Costs.of(checkpoint), []
    for result in wanted:
        padded = result.layout == PADDED
        sizes.append(checkpoint.bytes if padded else costs.size(result.widths, "bytes"))
    changed = config.recovery.method != "none" or config.quantization.wanted
    # Repaired blocks until the cut is complete; the cut until what is made of it is.
    beside = sum(entry.end - entry.begin for entry in checkpoint.side.values())
    sizes = [size + beside for size in sizes]
    more = max(sizes) if config.repair.kind != "none" or changed else 0
    return Disk(sum(sizes), sum(sizes) + more)


def memory(load: Load, dtype: torch.dtype, in_files: bool) -> int:
    """Bytes of host memory at most, from what this process has now; in_files: as activations are."""
    checkpoint, config = load.checkpoint, load.config
    here = psutil.Process().memory_info().rss
    hidden, blocks = checkpoint.hidden_size, checkpoint.blocks
    weights = Costs.of(checkpoint).prunable // blocks  # of a block
    outer = (checkpoint.parameters - weights * blocks) * dtype.itemsize
    tokens = max(load.calibrating, load.measuring)
    states = 0 if in_files else kept_states(config, blocks) * tokens * hidden * dtype.itemsize
    streamed = 2 * weights * dtype.itemsize + states
    device = chosen_device(config.runtime.device)
    pinned = pinned_buffers(weights * checkpoint.dtype.itemsize) if device.startswith("cuda") else 0
    logits = FLOAT * logits_rows(checkpoint.vocabulary) * checkpoint.vocabulary
    head = outer + COPIES * logits
    needs = [streamed + outer]
    widest = max(checkpoint.units["ffn"] * checkpoint.channel_sizes["c"], hidden)
    if load.measuring:
        needs.append(streamed + head + outer)
    if load.wanted and config.score.needs_text:
        number = 8 if widest <= FINE_CHANNELS else FLOAT
        needs.append(streamed + widest**2 * (3 * number + FLOAT))
    kind = KINDS.get(config.repair.kind) if load.wanted else None
    if kind and kind.weights:
        needs.append(streamed + FLOAT * (4 * widest**2 + 3 * widest * hidden))
    if kind and kind.refined:
        step = min(STEP_TOKENS, tokens) * STATES * max(hidden, widest // 3) * FLOAT
        needs.append(streamed + outer + TRAINED * weights + step + OF_LOSSES * logits)
    if config.runtime.verify:  # in a process of its own
        needs.append(FRESH + outer + ROWS * FLOAT * max(hidden, widest) + streamed - states)
    if load.data is not None:
        asked, adapts = config.runtime.dtype, config.recovery.adapts
        held = held_bytes(checkpoint.parameters, checkpoint.dtype, device, asked, adapts)
        a_part = config.recovery.batch / config.recovery.accumulate
        a_part *= load.data.tokens / len(load.data.train)
        kept = a_part * (blocks * STATES * max(hidden, widest // 3) + 3 * checkpoint.vocabulary)
        needs.append(int(held + kept * FLOAT))
    return here + int(HELD * max(needs)) + pinned


def pinned_buffers(block: int) -> int:
    """Bytes that blocks of so many come to a GPU through (`model/staging.py`), until the process ends:
    torch gives pinned memory out in powers of two, and keeps it.
    """
    return BUFFERS * (1 << (block - 1).bit_length())
