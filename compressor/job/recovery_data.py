"""What a recovery reads, and when an interrupted one may go on."""

import shutil
from pathlib import Path

from compressor.config.options import options_of
from compressor.config.recovery import RecoveryConfig
from compressor.config.text import TextConfig
from compressor.job.journal import Journal
from compressor.model.checkpoint import Checkpoint
from compressor.recovery.data import RecoveryData, read_data
from compressor.text.texts import Text
from compressor.text.tokens import check_ids

STATE = ".training.safetensors"


def read_recovery(
    recovery: RecoveryConfig,
    text: TextConfig,
    seed: int,
    checkpoint: Checkpoint,
    calibration: Text | None = None,
) -> RecoveryData | None:
    """What recovery trains on: a text of its own, or the calibration's.

    calibration: what of that text is not set aside to measure results on; None: all of it.
    """
    if recovery.method == "none":
        return None
    apart = recovery.data or recovery.data_range
    source = recovery.data or text.named
    data = read_data(
        calibration if calibration and source == text.named else source,
        checkpoint.tokenizer(),
        min(text.length, checkpoint.positions or 1 << 30),
        recovery.steps * recovery.batch,
        recovery.data_range if apart else text.calibration_range,
        seed,
    )
    check_ids([e.ids for e in (*data.train, *data.held_back)], checkpoint.vocabulary)
    return data


def describe_data(protocol: dict) -> str:
    """What is trained on, in a line."""
    return (
        f"{protocol['source']}: {protocol['sequences']} sequences of at most {protocol['length']} "
        f"tokens, {protocol['tokens']:,} tokens that count, and {protocol['held_back']} held back"
    )


def agree_on_recovery(
    recovery: RecoveryConfig, data: RecoveryData | None, work: Path, journal: Journal
) -> None:
    """A training that has been saved goes on with the options and the text it was begun with."""
    if not any(work.glob(f"*{STATE}")):
        shutil.rmtree(work / "teacher", ignore_errors=True)
        journal.put("recovery", None)
    settings = {
        each.metadata["flag"]: getattr(recovery, each.name) for each in options_of(recovery)
    }
    settings["the SHA-256 of the text to train on"] = data and data.protocol["sha256"]
    journal.agree("recovery", settings)
