"""Recovery as a part of a job: what it reads, when it may go on, and what becomes of one result."""

import math
import shutil
from dataclasses import asdict, fields
from pathlib import Path

from compressor.config.recovery import Recovery
from compressor.job.journal import Journal
from compressor.job.judging import Judge, said_of
from compressor.job.progress import Lines, Meter
from compressor.job.settings import Settings
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.recovery.data import RecoveryData, read_data
from compressor.text.texts import Text
from compressor.text.tokens import check_ids
from compressor.verification.verify import verify
from compressor.writing.shards import move_into

MERGED = "recovered"  # a folder inside the cut's, so that its files can be renamed into place
STATE = ".training.safetensors"


def read_recovery(
    settings: Settings, checkpoint: Checkpoint, calibration: Text | None = None
) -> RecoveryData | None:
    """What recovery trains on: a text of its own, or the calibration's.

    calibration: what of that text is not set aside to measure results on; None: all of it.
    """
    recovery = settings.recovery
    if recovery.method == "none":
        return None
    own = recovery.data or recovery.data_range
    source = recovery.data or settings.calibration
    data = read_data(
        calibration if calibration and source == settings.calibration else source,
        checkpoint.tokenizer(),
        min(settings.length, checkpoint.positions or 1 << 30),
        recovery.steps * recovery.batch,
        recovery.data_range if own else settings.calibration_range,
        settings.seed,
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
    settings: Settings, data: RecoveryData | None, work: Path, journal: Journal
) -> None:
    """A training that has been saved goes on with the settings and the text it was begun with."""
    if not any(work.glob(f"*{STATE}")):
        shutil.rmtree(work / "teacher", ignore_errors=True)
        journal.put("recovery", None)
    asked = settings.recovery
    given = {f.metadata["flag"]: getattr(asked, f.name) for f in fields(Recovery)}
    given["the SHA-256 of the text to train on"] = data and data.protocol["sha256"]
    journal.agree("recovery", given)


def recover_one(
    settings: Settings,
    data: RecoveryData,
    folder: Path,
    out: Path,
    stem: Path,
    done: dict,
    source: BlockStream,
    judge: Judge,
    meter: Meter,
    lines: Lines,
) -> None:
    """Recover the cut in `folder` as the folder `out`, which is there afterwards if it is better.
    `done` tells of the result, and if it says that it is recovered, nothing is left to do.

    stem: the beginning of the names of the files that belong to this result in the work folder.
    What is better is told by the text of --evaluation, or without one by the sequences held back: what
    is set aside of the calibration text by default measures, and chooses nothing.
    """
    if done["recovered"]:
        return
    # peft takes seconds to import
    from compressor.recovery.stage import expected_of, recover
    from compressor.recovery.training import Training

    result, record = done["result"], done["record"]
    state = stem.with_name(stem.name + STATE)
    with meter.stage("recover"), lines.stage("recover") as progress:
        asked = Training(settings.recovery, data, settings.seed, settings.dtype)
        history = recover(asked, folder, out, state, source, progress)
    measured = None if history.stopped else judge.after(out)
    perplexities = result["perplexity_pruned"], said_of(measured)["perplexity_after"]
    given = settings.evaluation is not None
    failure = verdict(history, *(perplexities if given else (None, None)))
    if too_long := data.protocol.get("rows_too_long"):
        result["warnings"].append(
            f"{too_long} rows of {data.protocol['source']} have no answer within "
            f"{data.protocol['length']} tokens, and were left out of the recovery."
        )
    if failure:
        shutil.rmtree(out, ignore_errors=True)
        result["warnings"].append(failure)
    else:
        result |= said_of(measured)
        if settings.verify:
            with meter.stage("verify"), lines.stage("verify") as progress:
                found = verify(out, expected=expected_of(state), progress=progress)
            proof = f"recovered within {found['logits_difference']:.1e}"
            result["verified"] = ", ".join(filter(None, (result["verified"], proof)))
    record["recovery"] = result["recovery"] = {
        "kept": failure is None,
        "settings": asdict(settings.recovery),
        "data": data.protocol,
        "losses": history.losses,
        "held_back": history.held_back,
    }
    done["recovered"] = True


def verdict(history, before: float | None, after: float | None) -> str | None:
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
        f"The recovery was given up, because {reason}; the model stays as it was. "
        "Lower --learning-rate, or give more --recover-data."
    )


def adopt(folder: Path) -> None:
    """Put the recovered files in the place of the cut's; may be interrupted and done again."""
    out = folder / MERGED
    if out.exists():
        move_into(out, folder)
