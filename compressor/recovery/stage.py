"""The stage: train a cut checkpoint, merge the result, and judge whether it became better."""

import math
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from compressor.blocks import BlockStream
from compressor.checkpoint import Checkpoint
from compressor.errors import MachineError
from compressor.memory import trim_heap
from compressor.recovery.data import RecoveryData
from compressor.recovery.lora import adapters, layers, load_adapted
from compressor.recovery.merge import write_merged
from compressor.recovery.precision import computed_dtype
from compressor.recovery.teacher import teach
from compressor.recovery.training import History, train
from compressor.settings import Settings
from compressor.verify import PROMPTS, logits

MERGED = "recovered"  # a folder inside the cut's, so that its files can be renamed into place


def recover(
    settings: Settings,
    data: RecoveryData,
    folder: Path,
    state: Path,
    expected: Path,
    source: BlockStream,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> History:
    """Train the cut checkpoint in `folder` and write the result beside it, as folder / MERGED.

    state: the file the training is saved in, and goes on from if it exists. expected: the file to
    write the trained model's logits to, for verification. source: the stream of the uncut model, on
    the device to train on; `distill` reads it. Nothing but `state` is written where the history
    says that the training stopped. `MachineError` when memory runs out.
    """
    recovery, device = settings.recovery, source.device
    teacher = None
    if recovery.method == "distill":
        folder_of_all = state.with_name("teacher")  # of every target: it knows the source alone
        teacher = teach(source, data.train, recovery.teacher_top, folder_of_all, progress)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), memory_errors():
        model = load_adapted(folder, recovery, device, settings.dtype, settings.seed)
        history = train(
            model,
            data.train,
            data.held_back,
            recovery,
            settings.seed,
            state,
            computed_dtype(device.type == "cpu", settings.dtype),
            teacher,
            progress,
        )
        if history.stopped:
            return history
        trained = adapters(model)
        save_expected(model, folder, expected)
        del model
    trim_heap()
    shutil.rmtree(folder / MERGED, ignore_errors=True)
    write_merged(folder, folder / MERGED, trained, recovery.alpha / recovery.rank)
    return history


def save_expected(model: torch.nn.Module, folder: Path, path: Path) -> None:
    """The logits of the trained model for `PROMPTS`, merged in memory by peft and rounded as stored.

    What was written from the files by write_merged has to compute the same.
    """
    checkpoint = Checkpoint(folder)
    tokenizer = checkpoint.tokenizer()
    for module in layers(model).values():  # merged in place: not in pages mapped from the file
        module.weight.data = module.weight.data.clone()
    merged = model.merge_and_unload().to(checkpoint.dtype)
    found = {
        str(i): logits(merged, tokenizer(p, return_tensors="pt")["input_ids"].to(merged.device))
        for i, p in enumerate(PROMPTS)
    }
    save_file(found, path)


@contextmanager
def memory_errors():
    """Memory that runs out while training, in a sentence."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MachineError(
            f"Memory ran out while training: {error}. Raise --recover-accumulate, or lower --length."
        ) from error


def verdict(history: History, before: float | None, after: float | None) -> str | None:
    """Why the cut is better left as it was, in a sentence, or None.

    before, after: perplexities on the evaluation text; without one those on the sequences held back.
    """
    text = "the evaluation text"
    if before is None or after is None:
        text = "the sequences held back"
        before, after = (math.exp(history.held_back[i][1]) for i in (0, -1))
    if history.stopped:
        reason = history.stopped
    elif not after < before:
        reason = f"perplexity on {text} went from {before:.4f} to {after:.4f}"
    else:
        return None
    return (
        f"The recovery was given up, because {reason}; the result is the cut model without it. "
        "Lower --learning-rate, or give more --recover-data."
    )


def adopt(folder: Path) -> None:
    """Put the recovered files in the place of the cut's; may be interrupted and done again."""
    out = folder / MERGED
    if out.exists():
        for file in out.iterdir():
            file.replace(folder / file.name)
        out.rmdir()
