"""A folder loaded by transformers as a user loads it, and the prompts that it is tried with."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compressor.errors import VerificationError
from compressor.model.families import FAMILIES
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
        model, found = loaded
        family = FAMILIES.get(model.config.model_type)
        tokenizer = read_tokenizer(folder, coded=family is not None and not family.stock)
    except Exception as error:  # whatever transformers raises, the checkpoint does not load
        raise VerificationError(f"{folder} does not load with transformers: {error}") from error
    not_read = family.not_read if family is not None else ()
    kinds = {
        kind: [name for name in map(str, names) if not name.endswith(not_read)]
        for kind, names in found.items()
    }
    wrong = {kind: sorted(names) for kind, names in kinds.items() if names}
    if wrong:
        raise VerificationError(f"{folder} loads with tensors that do not match: {wrong}.")
    return make_linear(model).eval(), tokenizer
