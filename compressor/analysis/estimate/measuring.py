"""The clock: prefill and decode of a checkpoint by plain transformers on this machine.

The dtype is the stored one, the threads are as set, tokens are random. A prefill is one forward of
the prompt that keeps the cache and the logits of the last token; a decode step is one forward of one
token a sequence with a static cache of as many positions as the context, and the choice of the next
token. Medians, after warming up.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.loading import open_whole
from compressor.model.per_layer import model_of

WITHOUT = "leave --measure out"
STEPS, WARM = 24, 4
PREFILLS = 3


@dataclass(frozen=True)
class Times:
    """Seconds of one prefill and of one decode step."""

    prefill: float
    decode: float


def measure(checkpoint: Checkpoint, device: str, batch: int, context: int) -> tuple[Times, Times]:
    """Times of the checkpoint, and of its empty twin: the framework's overhead."""
    check_context(context)
    model = open_whole(checkpoint, device, checkpoint.dtype, WITHOUT)
    measured = times(model, batch, context)
    del model
    return measured, times(empty_twin(checkpoint).to(device), batch, context)


def check_context(context: int) -> None:
    """Refuse what leaves no token to decode."""
    if context < 2:
        raise InputError(f"--measure needs a context of 2 tokens or more, not {context}.")


def empty_twin(checkpoint: Checkpoint):
    """The same class with as many blocks but next to no channels: its time is overhead."""
    family = checkpoint.family
    config = checkpoint.model_config()
    config.per_layer_config = None
    config.hidden_size = checkpoint.head_dim
    if not family.heads_fixed:  # where a head's channels are not all of those
        config.head_dim = checkpoint.head_dim  # rotary settings depend on it
    for key, width in {
        family.heads_key: 1,
        family.kv_heads_key: 1,
        family.ffn_width_key: 16,
        "vocab_size": 16,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }.items():
        setattr(config, family.spellings.get(key, key), width)
    return model_of(config, family, checkpoint.dtype)


@torch.inference_mode()
def times(model, batch: int, context: int) -> Times:
    """Median seconds of a prefill of `context` tokens, and of a decode step at that context."""
    model.eval()
    prefill = prefill_of(model, batch, context)
    prefill()
    prefills = [clocked(prefill, model.device) for _ in range(PREFILLS)]
    step, steps = decode_of(model, batch, context)
    spent = [clocked(step, model.device) for _ in range(steps)]
    return Times(statistics.median(prefills), statistics.median(spent[WARM:] or spent))


def prompt(model, batch: int, context: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch, context), generator=generator)
    return ids.to(model.device)


def prefill_of(model, batch: int, context: int) -> Callable:
    """What runs the prefill of a prompt."""
    ids = prompt(model, batch, context)

    def prefill() -> None:
        model(input_ids=ids, use_cache=True, logits_to_keep=1)

    return prefill


def decode_of(model, batch: int, context: int) -> tuple[Callable, int]:
    """What takes one decode step after the other, the last one at the context; and how many."""
    from transformers import StaticCache

    steps = min(STEPS + WARM, context - 1)
    cache = StaticCache(config=model.config, max_cache_len=context)
    last = prompt(model, batch, context)[:, : context - steps]

    def step() -> None:
        nonlocal last
        logits = model(input_ids=last, past_key_values=cache, logits_to_keep=1).logits
        last = logits[:, -1:].argmax(-1)

    step()
    return step, steps


def clocked(function: Callable, device: torch.device) -> float:
    """Seconds of a call, the device's work included."""
    begun = now(device)
    function()
    return now(device) - begun


def now(device: torch.device) -> float:
    """The clock, once the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
