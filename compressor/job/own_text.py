"""The text that a model writes itself: `compressor generate`, and what a job calibrates on where no text
is named and the model fits into memory. The job keeps the file in its work folder.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from compressor.config.amounts import size
from compressor.config.runtime import Runtime
from compressor.config.text import OWN, PROSE, TextConfig
from compressor.errors import InputError
from compressor.job.needs import decisive
from compressor.job.opening import chosen_device, compute_dtype
from compressor.job.reading import Texts, longest, read_texts
from compressor.job.run import Run
from compressor.model.checkpoint import Checkpoint
from compressor.model.finite import check_finite
from compressor.model.loading import open_whole
from compressor.model.memory import free_memory
from compressor.model.per_layer import may_run_code
from compressor.text.generation import BATCH, opening_of, written
from compressor.text.set_aside import LEAST, SHARE
from compressor.text.texts import Text, read_text

FILE = "own.jsonl"
FEWEST_ROWS = 8  # with fewer, each of which waits for all weights, a text takes hours
LITTLE = 1 << 30  # bytes of keys and values that no machine lacks


def write_own(
    checkpoint: Checkpoint,
    runtime: Runtime,
    out: Path,
    tokens: int,
    length: int,
    progress: Callable[[int, int], None],
) -> int:
    """Write the new file `out`, JSON lines, and say how many tokens it has: `tokens` or a few more, in
    documents of at most `length`. The whole model is in memory meanwhile; MachineError where there is no
    room for it.
    """
    device, tokenizer = chosen_device(runtime.device), checkpoint.tokenizer()
    precision = compute_dtype(runtime.dtype, checkpoint.dtype, device)
    model = open_whole(checkpoint, device, precision, "calibrate on a text (--calibration TEXT)")
    for name, weight in model.named_parameters():
        check_finite(name, weight)
    length = min(length, checkpoint.positions or length)
    rows, _ = room_to_write(checkpoint, precision, length)
    made, partial = 0, out.with_name(out.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for text, count in written(model, tokenizer, tokens, length, runtime.seed, rows):
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                made += count
                progress(min(made, tokens), tokens)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return made


def chosen_texts(
    config: TextConfig, checkpoint: Checkpoint, runtime: Runtime, run: Run, calibrates: bool
) -> tuple[TextConfig, Texts]:
    """The config with the text to calibrate on, written now if it is the model's own, and what
    `read_texts` gives.
    """
    chosen, notes = choose_text(config, checkpoint, runtime, run, calibrates)
    own = None
    if calibrates or config.evaluation is None:
        own = own_text(chosen, checkpoint, runtime, run)
    texts = read_texts(chosen, checkpoint, calibrates, own)
    return chosen, replace(texts, notes=[*notes, *texts.notes])


def choose_text(
    config: TextConfig, checkpoint: Checkpoint, runtime: Runtime, run: Run, calibrates: bool
) -> tuple[TextConfig, list[str]]:
    """The config with a text to calibrate on: the one named, or that of the interrupted job, or the
    model's own, or prose with a sentence why not that.
    """
    if config.calibration is not None or not calibrates:
        by_default = config.calibration is None and config.evaluation is None
        note = (
            f"Nothing is calibrated, so perplexity is measured on {PROSE}; name a text that is like "
            "what the model is for (--evaluation TEXT)."
        )
        return replace(config, calibration=config.named), [note] if by_default else []
    begun = (run.journal.get("settings") or {}).get("--calibration")
    why = None if begun else why_not_own(checkpoint, runtime, longest(config, checkpoint))
    chosen = begun or (PROSE if why else OWN)
    notes = [
        f"Calibrated on {PROSE} and not on text of the model's own, since {why}; name a text that is "
        "like what the model is for (--calibration TEXT)."
    ]
    return replace(config, calibration=chosen), notes if why else []


def why_not_own(checkpoint: Checkpoint, runtime: Runtime, length: int) -> str | None:
    """Why the model cannot write its own text, as half a sentence; None if it can."""
    if checkpoint.coded and not may_run_code(checkpoint.path):
        return (
            "the model, which could write one, runs by code of its own alone, which is not run here"
        )
    if opening_of(checkpoint.tokenizer()) is None:
        return "the tokenizer has neither BOS nor EOS to begin one with"
    device = chosen_device(runtime.device)
    precision = compute_dtype(runtime.dtype, checkpoint.dtype, device)
    _, needed = room_to_write(checkpoint, precision, length)
    free = min(free_memory(device), runtime.max_memory or float("inf"))
    if needed <= free:
        return None
    return f"writing it would take {size(needed)} of memory, and {size(free)} are free"


def room_to_write(checkpoint: Checkpoint, precision: torch.dtype, length: int) -> tuple[int, int]:
    """How many rows are written side by side, and the bytes of the weights and of their keys and values.

    The same for the same model, however much is free, since other rows make another text.
    """
    weights = checkpoint.parameters * precision.itemsize
    groups = sum(units["attention"] for units in checkpoint.block_units)
    row = 2 * groups * checkpoint.head_dim * length * precision.itemsize
    rows = min(BATCH, max(FEWEST_ROWS, max(weights // 2, LITTLE) // row))
    return rows, weights + rows * row


def own_text(config: TextConfig, checkpoint: Checkpoint, runtime: Runtime, run: Run) -> Text | None:
    """The text `own`, as long as it takes to calibrate and, if its end is to measure results, for that;
    None where no text of the job is that.
    """
    if OWN not in (config.calibration, config.calibration_also):
        return None
    file, limit = run.work / FILE, longest(config, checkpoint)
    tokens = config.samples * limit if config.samples else config.calibration_tokens
    if config.evaluation is None:
        tokens += max(tokens // SHARE, LEAST * limit)
    decided = decisive([config, runtime], checkpoint)
    if not file.exists() and (known := run.shelf.found(FILE, decided)):
        shutil.copyfile(known, file)
        run.journal.put("own", True)
    if not file.exists():
        if why := why_not_own(checkpoint, runtime, limit):
            raise InputError(
                f"Text of the model's own cannot be had, since {why}; name another text."
            )
        with run.stage("generate") as progress:
            write_own(checkpoint, runtime, file, tokens, limit, progress)
        run.journal.put("own", True)
        run.shelf.put(FILE, decided, file)
    return replace(read_text(str(file)), source=OWN)
