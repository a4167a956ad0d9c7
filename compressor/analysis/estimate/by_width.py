"""What a block's attention costs by KV groups and its FFN by channels: the table that `--budget` takes.

`ffn` is the FFN's projections and what is between them, `attention` all else of a block (its norms and
its additions to the stream, too), `other` what lies outside the blocks, in milliseconds of one decode
step at the context or of one prefill of so many tokens. Up to `WIDTHS` widths of each group are taken,
evenly from those that may be written (`planning/lattice.py`), the first and the last among them.

By the clock: `timed_widths.py`. By the roofline: attention of n KV groups is the Work (`work.py`) of a
block with those and no FFN, the mean over the blocks, whose windows can differ; an FFN of n channels is
the Work of a block with it less that of one without. Where both are bound by the same, they add up to
the roofline of the block.
"""

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from compressor.analysis.estimate import checked_context, checked_device
from compressor.analysis.estimate.machine import describe, device_for
from compressor.analysis.estimate.roofline import Device
from compressor.analysis.estimate.timed_widths import spread, timed
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.groups import GROUPS
from compressor.model.loading import check_device
from compressor.model.per_layer import KEY
from compressor.model.widths import BlockWidths, model_widths
from compressor.model.work import Step, Work, flops, moved, parts
from compressor.planning.lattice import lattice
from compressor.writing.record import versions

WIDTHS = 10
PHASES = ("decode", "prefill")


def table(
    folder: Path,
    device: str | None = None,
    batch: int = 1,
    context: int | None = None,
    phase: str = "decode",
    clock: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """The table of `folder`, in milliseconds; `about` says of what, and where it is from.

    Errors: `InputError` for a model whose blocks differ or are packed, an unknown phase or device, a
    batch or context that cannot be, `MachineError` for what this machine cannot run.
    """
    if phase not in PHASES:
        raise InputError(f"--phase is {' or '.join(PHASES)}, not {phase!r}.")
    device = checked_device(device, clock)
    checkpoint = Checkpoint(folder)
    if checkpoint.config.get(KEY):
        raise InputError(
            f"The blocks of {folder} have widths of their own ({KEY}), and a table is of one block for "
            "all; give the model that it was cut from."
        )
    if checkpoint.family.experts:
        raise InputError(
            "A table is of FFN channels and KV groups, and the units of "
            f"{checkpoint.family.model_type} are experts, which cost no time; leave --costs out."
        )
    if checkpoint.mixed:
        raise InputError(
            f"The blocks of {folder} are of several kinds, and a table is of one block for all; leave "
            "--costs out, or take --budget flops."
        )
    context = checked_context([checkpoint], batch, context)
    step = Step(batch, context if phase == "prefill" else 1, context)
    allowed = lattice(checkpoint)
    widths = {"attention": spread(allowed.attention, WIDTHS), "ffn": spread(allowed.ffn, WIDTHS)}
    if clock:
        check_device(device)
        seconds = timed(checkpoint, device, step, widths, progress)
        source = f"measured on {describe(device)}"
    else:
        roof, _ = device_for(device, model_widths(checkpoint), batch)
        seconds = bounded(checkpoint, roof, step, widths)
        source = f"roofline of {device}, {roof.source}"
    return {
        **{g: {str(n): 1e3 * cost for n, cost in seconds[g].items()} for g in GROUPS},
        "other": 1e3 * seconds["other"],
        "about": {
            "model": str(folder),
            "source": source,
            "dtype": str(checkpoint.dtype).removeprefix("torch."),
            "phase": phase,
            "batch": batch,
            "context": context,
            "blocks": checkpoint.blocks,
            "unit": "ms",
            "versions": versions(),
        },
    }


def bounded(checkpoint: Checkpoint, roof: Device, step: Step, widths: dict[str, list[int]]) -> dict:
    """Seconds that `roof` cannot be quicker than: of each group by width, and of `other`."""
    model = model_widths(checkpoint)
    dtype, size, most = model.dtype, model.dtype.itemsize, checkpoint.units
    biases = {group: biases_of_unit(checkpoint, group) for group in GROUPS}

    def work(block: BlockWidths, attention: int, ffn: int) -> Work:
        lost = {"attention": most["attention"] - attention, "ffn": most["ffn"] - ffn}
        cut = replace(
            block,
            query=block.query // most["attention"] * attention,
            key_value=block.key_value // most["attention"] * attention,
            ffn=ffn,
            vectors=block.vectors - sum(lost[group] * biases[group] for group in GROUPS),
        )
        return Work(flops(cut, step), moved(cut, step, size))

    def attention(n: int) -> float:
        return statistics.fmean(roof.seconds(work(b, n, 0), dtype) for b in model.blocks)

    def ffn(n: int) -> float:
        block = model.blocks[0]
        with_it, without = (work(block, most["attention"], width) for width in (n, 0))
        both = zip(with_it, without, strict=True)
        return roof.seconds(Work(*(one - other for one, other in both)), dtype)

    phase = "prefill" if step.tokens == step.context else "decode"
    ends = [part for part in parts(model, step.batch, step.context) if part.widths is None]
    return {
        "attention": {n: attention(n) for n in widths["attention"]},
        "ffn": {n: ffn(n) for n in widths["ffn"]},
        "other": sum(roof.seconds(getattr(part, phase), dtype) for part in ends),
    }


def biases_of_unit(checkpoint: Checkpoint, group: str) -> int:
    """Parameters of the biases that go with a unit."""
    names = (checkpoint.block_name(0, part.tensor) for part in checkpoint.family.groups()[group])
    owned = [checkpoint.tensors[name] for name in names if name in checkpoint.tensors]
    return sum(t.numel for t in owned if len(t.shape) == 1) // checkpoint.units[group]
