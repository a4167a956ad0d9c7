"""What a job reads before it works: its texts as tokens, and the stream they are fed to."""

from pathlib import Path

import psutil
import torch

from compressor.allocation.guard import held_back
from compressor.blocks import BlockStream
from compressor.calibration import TokenSet, check_ids, joined, tokenize
from compressor.errors import InputError, MachineError
from compressor.recovery.data import RecoveryData
from compressor.repair import check_text
from compressor.texts import read_text

CALIBRATION_TOKENS = 65_536  # where --samples does not say how many sequences
SHARE = 0.25  # of the free memory of a device or the host, for activations


def read_texts(settings, checkpoint) -> tuple[TokenSet | None, TokenSet | None]:
    """Calibration (if anything looks at activations) and evaluation (if asked for)."""
    check_counts(settings)
    tokenizer = checkpoint.tokenizer() if settings.verify else None  # which its proof will need
    calibration = evaluation = None
    limit = min(settings.length, checkpoint.positions or 1 << 30)
    if settings.reads_calibration:
        tokenizer = tokenizer or checkpoint.tokenizer()
        text = read_text(settings.calibration)
        calibration = tokenize(
            *(text, tokenizer, limit, settings.samples, settings.calibration_range),
            budget=CALIBRATION_TOKENS,
        )
        if settings.calibration_also is not None:
            other = read_text(settings.calibration_also)
            also = tokenize(other, tokenizer, limit, budget=calibration.tokens)
            calibration = joined(calibration, also)
        if settings.cuts and not settings.weights.single:
            check_text(settings.repair, calibration)
        if settings.judged:
            held_back(calibration)
    if settings.evaluation is not None:
        tokenizer = tokenizer or checkpoint.tokenizer()
        text = read_text(settings.evaluation)
        evaluation = tokenize(text, tokenizer, limit, None, settings.evaluation_range)
    for tokens in (calibration, evaluation):
        if tokens is not None:
            check_ids(tokens.sequences, checkpoint.vocabulary)
    return calibration, evaluation


def check_counts(settings) -> None:
    for option, given, least in (
        ("--samples", settings.samples, 1),
        ("--length", settings.length, 2),
    ):
        if given is not None and given < least:
            raise InputError(f"{option} must be at least {least}, not {given}.")


def reading_notes(settings, checkpoint, *tokens: TokenSet | RecoveryData | None) -> list[str]:
    """Sentences about what was read otherwise than it stands there, or than it was asked for."""
    protocols = [t.protocol for t in tokens if t is not None]
    protocols += [p["also"] for p in protocols if "also" in p]
    notes = [*checkpoint.notes, *position_notes(settings, checkpoint, protocols)]
    for protocol in protocols:
        notes += count_notes(settings, protocol) + replacement_notes(protocol)
    return list(dict.fromkeys(notes))


def position_notes(settings, checkpoint, protocols: list[dict]) -> list[str]:
    """Texts were cut because the model has fewer positions than --length."""
    positions = checkpoint.positions
    if not positions or settings.length <= positions or not protocols:
        return []
    return [
        f"The model has {positions} positions, so texts were cut at {positions} tokens and not at "
        f"--length {settings.length}."
    ]


def count_notes(settings, protocol: dict) -> list[str]:
    """A text has fewer sequences than --samples asks for."""
    asked, given = settings.samples, protocol["sequences"]
    if asked is None or protocol.get("asked") != asked or given >= asked:
        return []
    return [
        f"--samples asks for {asked} sequences, and {protocol['source']} gives {given}: these were used."
    ]


def replacement_notes(protocol: dict) -> list[str]:
    """A text holds what no text can."""
    replaced = protocol.get("replaced")
    if not replaced:
        return []
    return [
        f"{protocol['source']} holds halves of characters (lone surrogates), which no tokenizer reads: "
        f"{replaced['characters']} were read as U+FFFD ({replaced['first']} has the first)."
    ]


def open_stream(
    settings, checkpoint, offload: Path, *tokens: TokenSet | RecoveryData | None
) -> BlockStream:
    """A stream on the chosen device and dtype, whose activations are where there is room for them."""
    device = settings.on_device
    dtype = compute_dtype(settings.dtype, checkpoint.dtype, device)
    memory = settings.max_memory or psutil.virtual_memory().available
    count = max((t.tokens for t in tokens if t is not None), default=0)
    states = settings.kept_states(checkpoint.blocks)
    needed = states * count * checkpoint.hidden_size * dtype.itemsize
    try:
        return BlockStream(checkpoint, device, dtype, place(needed, device, memory, offload))
    except (RuntimeError, AssertionError) as error:
        raise MachineError(f"The device {device!r} cannot be used: {error}") from error


def place(needed: int, device: str, memory: int, folder: Path) -> torch.device | Path | None:
    """Where so many bytes of activations are kept: on the GPU, in host memory (None) or in files."""
    if device.startswith("cuda") and needed <= SHARE * torch.cuda.mem_get_info(device)[0]:
        return torch.device(device)
    return folder if needed > SHARE * memory else None


def compute_dtype(asked: str, stored: torch.dtype, device: str) -> torch.dtype:
    """`auto` is the stored dtype, but float32 for float16 on a CPU, which has no such units."""
    if asked == "auto":
        half_on_cpu = stored == torch.float16 and device == "cpu"
        return torch.float32 if half_on_cpu else stored
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if asked not in known:
        raise InputError(f"--dtype is auto, {', '.join(known)}, not {asked!r}.")
    return known[asked]
