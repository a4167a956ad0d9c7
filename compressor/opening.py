"""What a job reads before it works: its texts as tokens, and the stream they are fed to."""

from pathlib import Path

import psutil
import torch

from compressor.allocation import ALLOCATIONS
from compressor.allocation.guard import held_back
from compressor.blocks import BlockStream
from compressor.calibration import TokenSet, check_ids, read_text, tokenize
from compressor.errors import InputError, MachineError
from compressor.methods import METHODS
from compressor.recovery.data import RecoveryData
from compressor.repair import check_text

OFFLOAD_SHARE = 0.25  # activations beyond this share of the memory go to files


def read_texts(settings, checkpoint) -> tuple[TokenSet | None, TokenSet | None]:
    """Calibration (if the method or the repair looks at activations) and evaluation (if asked for)."""
    tokenizer = None
    method = METHODS[settings.method]
    calibration = evaluation = None
    limit = min(settings.length, checkpoint.config.get("max_position_embeddings") or 1 << 30)
    judged = ALLOCATIONS[settings.allocate].measured
    if settings.repair != "none" or judged or method.wants(method.check_mode(settings.mode)):
        tokenizer = checkpoint.tokenizer()
        text = read_text(settings.calibration)
        calibration = tokenize(text, tokenizer, limit, settings.samples, settings.calibration_range)
        check_text(settings.repair, calibration)
        if judged:
            held_back(calibration)
    if settings.evaluation is not None:
        tokenizer = tokenizer or checkpoint.tokenizer()
        text = read_text(settings.evaluation)
        evaluation = tokenize(text, tokenizer, limit, None, settings.evaluation_range)
    for tokens in (calibration, evaluation):
        if tokens is not None:
            check_ids(tokens.sequences, checkpoint.vocabulary)
    return calibration, evaluation


def position_notes(settings, checkpoint, *tokens: TokenSet | RecoveryData | None) -> list[str]:
    """A sentence if texts were cut because the model has fewer positions than --length."""
    positions = checkpoint.config.get("max_position_embeddings")
    if not positions or settings.length <= positions or not any(tokens):
        return []
    return [
        f"The model has {positions} positions, so texts were cut at {positions} tokens and not at "
        f"--length {settings.length}."
    ]


def open_stream(
    settings, checkpoint, offload: Path, *tokens: TokenSet | RecoveryData | None
) -> BlockStream:
    """A stream on the chosen device and dtype; activations go to files where memory is short."""
    device = settings.on_device
    dtype = compute_dtype(settings.dtype, checkpoint.dtype, device)
    memory = settings.max_memory or psutil.virtual_memory().available
    count = max((t.tokens for t in tokens if t is not None), default=0)
    # A backward keeps what enters every block; a forward what enters and leaves one; a repair's two
    # paths the streams before, within and after one.
    states = 2 if settings.repair == "none" else 6
    if ALLOCATIONS[settings.allocate].measured:
        states = max(states, 6)  # those, the streams within the block, and what enters o_proj
    if METHODS[settings.method].observe is not None:
        states = max(states, checkpoint.blocks + 3)
    needed = states * count * checkpoint.hidden_size * dtype.itemsize
    use_files = needed > OFFLOAD_SHARE * memory
    try:
        return BlockStream(checkpoint, device, dtype, offload if use_files else None)
    except (RuntimeError, AssertionError) as error:
        raise MachineError(f"The device {device!r} cannot be used: {error}") from error


def compute_dtype(asked: str, stored: torch.dtype, device: str) -> torch.dtype:
    """`auto` is the stored dtype, but float32 for float16 on a CPU, which has no such units."""
    if asked == "auto":
        half_on_cpu = stored == torch.float16 and device == "cpu"
        return torch.float32 if half_on_cpu else stored
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if asked not in known:
        raise InputError(f"--dtype is auto, {', '.join(known)}, not {asked!r}.")
    return known[asked]
