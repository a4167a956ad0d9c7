"""A folder as one model of transformers: loaded as a user loads it, with the prompts that it is tried
with, and for what times a model or writes text with it, which does not stream.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compressor.errors import InputError, MachineError, VerificationError
from compressor.model.checkpoint import Checkpoint
from compressor.model.families import FAMILIES
from compressor.model.memory import free_memory
from compressor.model.modules import make_linear
from compressor.model.per_layer import may_run_code
from compressor.text.tokenizer import PROMPTS, read_tokenizer

if TYPE_CHECKING:  # it takes seconds to import
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", positions: int | None) -> list[torch.Tensor]:
    """Token ids [1, tokens] of `PROMPTS`, cut at the model's positions; None: it has no end."""
    return [tokenizer(p, return_tensors="pt")["input_ids"][:, :positions] for p in PROMPTS]


def positions_of(config: "PreTrainedConfig") -> int | None:
    """`Checkpoint.positions` of a model that transformers loaded, of whatever family."""
    name, family = "max_position_embeddings", FAMILIES.get(config.model_type)
    return getattr(config, family.spellings.get(name, name) if family else name, None)


def load(folder: Path, dtype: torch.dtype | str = "auto"):
    """Model and tokenizer by transformers, refusing tensors that did not match, but for stored buffers.

    Projections are `Linear` modules in every family; weights that GPT-2's are made of are views.
    `auto` is what the config says, which need not be the dtype that a source's weights are in.
    """
    from transformers import AutoModelForCausalLM, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    trusted = may_run_code(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=trusted,
        )
        model, mismatches = loaded
        family = FAMILIES.get(model.config.model_type)
        tokenizer = read_tokenizer(folder, coded=family is not None and not family.stock)
    except Exception as error:  # whatever transformers raises, the checkpoint does not load
        raise VerificationError(f"{folder} does not load with transformers: {error}") from error
    not_read = family.not_read if family is not None else ()
    kinds = {
        kind: [name for name in map(str, names) if not name.endswith(not_read)]
        for kind, names in mismatches.items()
    }
    wrong = {kind: sorted(names) for kind, names in kinds.items() if names}
    if wrong:
        raise VerificationError(f"{folder} loads with tensors that do not match: {wrong}.")
    return make_linear(model).eval(), tokenizer


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
