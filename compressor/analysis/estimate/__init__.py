"""What a model costs to hold and to run: counts, rooflines, and the clock beside them."""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from compressor.analysis.estimate.machine import device_for
from compressor.analysis.estimate.measuring import measure
from compressor.analysis.estimate.roofline import Device, is_here, total_seconds
from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.widths import model_widths
from compressor.model.work import Part, parts
from compressor.planning.costs import Costs
from compressor.planning.lattice import lattice
from compressor.planning.reach import outside_note, reach_of
from compressor.quantization.reading import open_model

CONTEXT = 2048
SHARES = (0.9, 0.8, 0.7)  # of all parameters: what they are of the blocks' weights is said
SUMMED = (
    "parameters", "bytes", "flops_per_token", "kv_bytes_per_token", "kv_bytes", "decode_bytes",
    "decode_seconds", "prefill_flops", "prefill_bytes", "prefill_seconds",
)  # fmt: skip


def estimate(
    folder: Path,
    before: Path | None = None,
    device: str | None = None,
    batch: int = 1,
    context: int | None = None,
    clock: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Costs of `folder`, and of `before`, at a batch of sequences and a context in tokens.

    The result: `batch`, `context`, `device` and `models`, each with its ceilings, `parts`, `total`
    (seconds are of a whole step: one token of each sequence, or a prompt of `context` tokens each), and
    `outside_blocks`, what no cut touches and how small the model can become (None of packed weights,
    which are not cut), with `notes` where it is much. With `clock`, each model also has `measured`.
    Errors: `InputError` for an unknown device or a context beyond the positions of a model,
    `MachineError` for what this machine cannot run.
    """
    device = checked_device(device, clock)
    opened = [open_model(path) for path in (before, folder) if path is not None]
    packed = [checkpoint.path for checkpoint in opened if checkpoint.packing]
    if clock and packed:
        raise InputError(
            f"--measure times plain transformers, which unpacks the weights of {packed[0]} "
            "before its first step, so that its times are the dense model's; leave --measure out."
        )
    context = checked_context(opened, batch, context)
    models = []
    for checkpoint in opened:
        widths = model_widths(checkpoint)
        all_parts = parts(widths, batch, context)
        roof, products = device_for(device, widths, batch)
        model = described(checkpoint, all_parts, roof, widths.dtype, batch)
        model["outside_blocks"], model["notes"] = outside_blocks(checkpoint)
        if clock:
            model["measured"] = compared(checkpoint, model, all_parts, products, batch, context)
        models.append(model)
        progress(len(models), len(opened))
    return {"batch": batch, "context": context, "device": device, "models": models}


def checked_device(asked: str | None, clock: bool) -> str:
    """The device asked for, or that of this machine; the clock runs here only."""
    device = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    if not is_here(device) and clock:
        raise InputError(
            f"--measure times this machine, and {device} is known from its data sheet only; "
            "use --device cpu or cuda."
        )
    return device


def checked_context(opened: list[Checkpoint], batch: int, asked: int | None) -> int:
    """The context asked for, or 2,048 tokens, as far as every model has positions."""
    if batch < 1:
        raise InputError(f"--batch must be at least 1, not {batch}.")
    stated = [c.positions for c in opened]
    positions = min(filter(None, stated), default=math.inf)
    context = int(min(CONTEXT, positions)) if asked is None else asked
    if not 1 <= context <= positions:
        raise InputError(
            f"--context must lie between 1 and the model's {positions} positions, not {context}."
        )
    return context


def described(
    checkpoint: Checkpoint, all_parts: list[Part], roof: Device, dtype: torch.dtype, batch: int
) -> dict:
    """One model as plain data."""
    rows: list[dict] = []
    for part in all_parts:
        widths = part.widths
        rows.append(
            {
                "block": part.name,
                "heads": widths and widths.heads,
                "kv_heads": widths and widths.kv_heads,
                "ffn": widths and widths.ffn,
                "experts": widths and widths.experts and widths.experts.count,
                "window": widths and widths.window,
                "parameters": part.parameters,
                "bytes": part.bytes,
                "flops_per_token": part.decode.flops // batch,
                "kv_bytes_per_token": part.kv_bytes_per_token,
                "kv_bytes": part.kv_bytes,
                "decode_bytes": part.decode.bytes,
                "decode_seconds": roof.seconds(part.decode, dtype),
                "decode_bound": roof.bound(part.decode, dtype),
                "prefill_flops": part.prefill.flops,
                "prefill_bytes": part.prefill.bytes,
                "prefill_seconds": roof.seconds(part.prefill, dtype),
                "prefill_bound": roof.bound(part.prefill, dtype),
            }
        )
    total = {key: sum(row[key] for row in rows) for key in SUMMED}
    return {
        "path": str(checkpoint.path),
        "dtype": str(dtype).removeprefix("torch."),
        "group": checkpoint.packing and checkpoint.packing.group,
        "stored": checkpoint.packing and checkpoint.packing.words,
        "tied": checkpoint.tied,
        "bandwidth": roof.bandwidth,
        "peak": roof.peak[dtype],
        "ceilings": roof.source,
        "parts": rows,
        "total": total | {"tokens_per_second": batch / total["decode_seconds"]},
    }


def outside_blocks(checkpoint: Checkpoint) -> tuple[dict | None, list[str]]:
    """How small a model can become, and a note where embedding and head are much of it."""
    if checkpoint.packing:
        return None, []
    reach = reach_of(checkpoint, lattice(checkpoint, align=1))
    targets = [Target("keep", share) for share in SHARES if share >= reach.keep]
    return reach.described(), outside_note(reach, Costs.of(checkpoint), targets)


def compared(
    checkpoint: Checkpoint,
    model: dict,
    all_parts: list[Part],
    products: Device,
    batch: int,
    context: int,
) -> dict:
    """The clock beside what was expected.

    Expected of a prefill: its roofline and the overhead. Of a decode step: the roofline at the rate
    at which products of as many rows read weights on this machine, and the overhead.
    """
    times, overhead = measure(checkpoint, products.name, batch, context)
    work = {
        "decode": total_seconds((part.decode for part in all_parts), products, checkpoint.dtype),
        "prefill": model["total"]["prefill_seconds"],
    }
    result: dict = {"product_bandwidth": products.bandwidth}
    for phase in work:
        spent, measured = getattr(overhead, phase), getattr(times, phase)
        expected = work[phase] + spent
        result[phase] = {
            "roofline": model["total"][f"{phase}_seconds"],
            "overhead": spent,
            "expected": expected,
            "measured": measured,
            "measured_over_expected": measured / expected,
        }
    return result
