"""Training a cut checkpoint and writing what came of it.

Started by torchrun, every process trains its share of each step, and the first one writes.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file

from compressor.config.recovery import RecoveryConfig
from compressor.errors import MachineError
from compressor.model.checkpoint import Checkpoint
from compressor.model.exact_logits import logits
from compressor.model.loading import prompt_ids
from compressor.model.memory import trim_heap
from compressor.model.stream import BlockStream
from compressor.recovery.full import load_full, write_full
from compressor.recovery.history import History
from compressor.recovery.lora import adapters, layers, load_adapted
from compressor.recovery.merge import write_merged
from compressor.recovery.precision import computed_dtype
from compressor.recovery.processes import joined
from compressor.recovery.sharding import Sharding, Shell, give_up, own
from compressor.recovery.teacher import Teacher, teach
from compressor.recovery.training import Training, train


def recover(
    training: Training,
    folder: Path,
    out: Path,
    state: Path,
    source: BlockStream,
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> History:
    """Train the cut checkpoint in `folder` and write the result as the new folder `out`.

    state: the file the training is saved in, and goes on from if it exists. Beside it come the
    logits that the result must compute, for verification (`expected_of`), and what `distill` learns
    from `source`, the stream of the uncut model on the device to train on. Where the history says
    that the training stopped, nothing is written. `MachineError` when memory runs out.
    """
    recovery, device = training.recovery, source.device
    processes, sharding = joined(device), training.sharding
    teacher = None
    if recovery.taught:
        kept = state.with_name("teacher")  # for every target: it knows the source alone
        if processes.is_main_process:
            teach(source, training.data.train, recovery.teacher_top, kept, progress)
        processes.wait_for_everyone()
        teacher = Teacher(kept)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            model = loaded(training, folder, device)
            if sharding:
                tell(in_words(model, processes.num_processes))
            history = train(model, training, state, teacher, progress, tell)
            give_up(model)
            first = processes.is_main_process
            if not history.stopped and (first or sharding):
                write(model, recovery, folder, out if first else None)
                save_expected(model, folder, expected_of(state) if first else None)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MachineError(
            f"Memory ran out while training: {error}. Raise recover_accumulate, or lower --length."
        ) from error
    del model
    trim_heap()
    return history


def loaded(training: Training, folder: Path, device: torch.device) -> torch.nn.Module:
    """The checkpoint in `folder`, of which adapters or all weights ask for gradients."""
    recovery, dtype, sharding = training.recovery, training.dtype, training.sharding
    if recovery.adapts:
        return load_adapted(folder, recovery, device, dtype, training.seed, sharding)
    return load_full(folder, device, sharding, computed_dtype(device.type == "cpu", dtype))


def write(model: torch.nn.Module, recovery: RecoveryConfig, folder: Path, out: Path | None) -> None:
    """What was trained as the new folder `out`. Every process that has a part of the model has to call
    this; without `out` it writes nothing.
    """
    if out is not None:
        shutil.rmtree(out, ignore_errors=True)
    if not recovery.adapts:
        write_full(model, folder, out)
        return
    trained = adapters(model)
    if out is not None:
        write_merged(folder, out, trained, recovery.alpha / recovery.rank)


def expected_of(state: Path) -> Path:
    return state.with_suffix(".expected.safetensors")


def in_words(model: torch.nn.Module, processes: int) -> str:
    held, every = (sum(f(p).numel() for p in model.parameters()) for f in (own, lambda p: p))
    return (
        f"sharded over {processes} processes (FSDP2); this one holds {held:,} of the model's {every:,} "
        "numbers."
    )


@torch.no_grad()
def save_expected(model: torch.nn.Module, folder: Path, path: Path | None) -> None:
    """The logits of the trained model for `PROMPTS`, merged in memory by peft and rounded as stored.

    What was written from the files has to compute the same. Every process that has a part of the model
    has to call this; without a path it does not write.
    """
    checkpoint = Checkpoint(folder)
    tokenizer = checkpoint.tokenizer()
    sharded = give_up(model)
    if not sharded:
        for module in layers(model).values():  # merged in place: not in pages mapped from the file
            module.weight.data = module.weight.data.clone()
    merged: Any = model.merge_and_unload() if isinstance(model, PeftModel) else model
    parameters = dict(merged.named_parameters())
    if sharded:  # gathered as they are held, not as they were computed with
        shell = Shell(checkpoint, next(iter(parameters.values())).dtype, merged.device)
        merged = shell.fill(Sharding())
    for name, parameter in merged.named_parameters():  # a loaded model has its buffers in float32
        stored = checkpoint.tensors[name].dtype if name in checkpoint.tensors else checkpoint.dtype
        rounded = own(parameters[name]).to(stored).to(checkpoint.dtype)
        if sharded:
            own(parameter).copy_(rounded)
        else:
            parameter.data = rounded
    expected = {
        str(i): logits(merged, ids.to(merged.device))
        for i, ids in enumerate(prompt_ids(tokenizer, checkpoint.positions))
    }
    if path is not None:
        save_file(expected, path)
