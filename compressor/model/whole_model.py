"""A checkpoint as one transformers model: what times a model or writes text with it does not stream."""

import torch

from compressor.errors import InputError, MachineError
from compressor.model.checkpoint import Checkpoint
from compressor.model.memory import free_memory
from compressor.model.per_layer import may_run_code


def open_whole(checkpoint: Checkpoint, device: str, dtype: torch.dtype, instead: str):
    """The model, in eval mode. `instead` ends the sentence where it cannot be had: InputError for code
    that is not this package's, MachineError for a device that is not there or has less memory free than
    the weights take.
    """
    from transformers import AutoModelForCausalLM, logging

    logging.disable_progress_bar()
    trusted = may_run_code(checkpoint.path)
    if checkpoint.coded and not trusted:
        raise InputError(
            f"{checkpoint.path} runs by code of its own alone, which is not run here; {instead}."
        )
    check_device(device)
    check_room(checkpoint, checkpoint.bytes, device, instead)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.path, dtype=dtype, trust_remote_code=trusted
    )
    return model.to(device).eval()  # type: ignore[arg-type]  # a wrapper hides the method


def check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MachineError(f"The device {device!r} cannot be used: {error}") from error


def check_room(checkpoint: Checkpoint, needed: int, device: str, instead: str) -> None:
    """MachineError if so many bytes are not free."""
    if needed > (free := free_memory(device)):
        raise MachineError(
            f"{checkpoint.path} needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are free; "
            f"{instead}, or free some."
        )
