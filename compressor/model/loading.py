"""A folder as one model of transformers: loaded as a user loads it, with the prompts that it is tried
with, and for what times a model or writes text with it, which does not stream.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import init_empty_weights

from compressor.config.json_files import object_in
from compressor.errors import InputError, MachineError, VerificationError
from compressor.model.checkpoint import Checkpoint
from compressor.model.families import FAMILIES, Family
from compressor.model.families.wrappers import LAYERS as WRAPPED_LAYERS
from compressor.model.families.wrappers import WRAPPERS, wrapper_of
from compressor.model.memory import free_memory
from compressor.model.modules import make_linear
from compressor.model.per_layer import may_run_code, model_of
from compressor.model.streamed import shards_of
from compressor.model.tensors import stored
from compressor.text.tokenizer import PROMPTS, read_tokenizer

if TYPE_CHECKING:  # it takes seconds to import
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", positions: int | None) -> list[torch.Tensor]:
    """Token ids [1, tokens] of `PROMPTS`, cut at the model's positions; None: it has no end."""
    return [tokenizer(p, return_tensors="pt")["input_ids"][:, :positions] for p in PROMPTS]


def positions_of(config: "PreTrainedConfig") -> int | None:
    """`Checkpoint.positions` of a model that transformers loaded, of whatever family."""
    config = config.get_text_config()
    name, family = "max_position_embeddings", FAMILIES.get(config.model_type)
    return getattr(config, family.spellings.get(name, name) if family else name, None)


def auto_class(folder: Path) -> Any:
    """What of transformers loads a folder's model: of texts alone, or of texts and images."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    wraps = wrapper_of(object_in(folder / "config.json"))
    return AutoModelForImageTextToText if wraps else AutoModelForCausalLM


def blocks_of(model: torch.nn.Module, family: Family | None) -> torch.nn.ModuleList | list:
    """The blocks of a loaded model, in a wrapper's class the language model's; none where no table of
    its type says where they are.
    """
    name = WRAPPED_LAYERS if model.config.model_type in WRAPPERS else family and family.layers
    return cast(torch.nn.ModuleList, model.get_submodule(name)) if name else []


def built(checkpoint: Checkpoint, dtype: torch.dtype | None = None):
    """The model of what is read of a folder, whose own class is another or is not run."""
    config, dtype = checkpoint.model_config(), dtype or checkpoint.dtype
    with init_empty_weights(include_buffers=False):
        model = model_of(config, checkpoint.family, dtype)
    of = checkpoint.family.dtype_of
    if checkpoint.streamed:  # shard by shard, and as copies: what is mapped stays on the disk
        names = sorted(checkpoint.tensors, key=lambda n: stored([checkpoint.tensors[n]])[0].file)
        read = {name: checkpoint.read([name])[name].clone() for name in names}
    else:
        read = checkpoint.read(checkpoint.tensors)
    tensors = {name: t.to(of(name, dtype)) for name, t in read.items()}
    if checkpoint.tied:
        tensors[checkpoint.family.head] = tensors[checkpoint.family.embedding]
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def load(folder: Path, dtype: torch.dtype | str = "auto"):
    """Model and tokenizer by transformers, refusing tensors that did not match, but for stored buffers.

    Projections are `Linear` modules in every family; weights that GPT-2's are made of are views.
    `auto` is what the config says, which need not be the dtype that a source's weights are in.
    """
    from transformers import logging

    if shards_of(folder) is not None:
        raise InputError(
            f"{folder} is streamed from the hub shard by shard, and transformers is to load it here as "
            "a whole; give the model's name without hf://."
        )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    trusted = may_run_code(folder)
    try:
        loaded: Any = auto_class(folder).from_pretrained(
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
    if checkpoint.wrapper or checkpoint.dequantised or checkpoint.streamed:
        return built(checkpoint, dtype).to(device)
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
