"""Recovery of one result: trained, and kept if it is better than the cut was."""

import math
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from compressor.job.judging import Judge
from compressor.job.proving import proved
from compressor.job.recovery_data import STATE
from compressor.job.result import Done
from compressor.model.stream import BlockStream
from compressor.recovery.training import Training
from compressor.writing.shards import move_into

MERGED = "recovered"  # a folder inside the cut's, so that its files can be renamed into place


@dataclass(frozen=True)
class Recovering:
    """What the recovery of every result of a job has.

    source: the stream of the uncut model. chooses: whether the evaluation text says which is better, or
    without one the sequences held back: what is set aside of the calibration text by default measures,
    and chooses nothing.
    """

    training: Training
    source: BlockStream
    judge: Judge
    chooses: bool
    verifies: bool


def recover_one(recovering: Recovering, folder: Path, out: Path, stem: Path, done: Done) -> None:
    """Recover the cut in `folder` as the folder `out`, which is there afterwards if it is better.
    `done` tells of the result, and if it says that it is recovered, nothing is left to do.

    stem: the beginning of the names of the files that belong to this result in the work folder.
    """
    if done.recovered:
        return
    # peft takes seconds to import
    from compressor.recovery.stage import expected_of, recover

    result, data, run = done.result, recovering.training.data, recovering.judge.run
    state = stem.with_name(stem.name + STATE)
    tell = partial(run.lines.fact, "memory")
    with run.stage("recover") as progress:
        history = recover(
            recovering.training, folder, out, state, recovering.source, progress, tell
        )
    measured = None if history.stopped else recovering.judge.after(out)
    after = measured and measured["perplexity"]
    failure = verdict(history, *((result.perplexity_pruned, after) if recovering.chooses else ()))
    if too_long := data.protocol.get("rows_too_long"):
        result.warnings.append(
            f"{too_long} rows of {data.protocol['source']} have no answer within "
            f"{data.protocol['length']} tokens, and were left out of the recovery."
        )
    if failure:
        shutil.rmtree(out, ignore_errors=True)
        result.warnings.append(failure)
    else:
        result.measure(measured)
        if recovering.verifies:
            report = proved(run, recovering.judge.runtime, out, expected=expected_of(state))
            result.proven(f"recovered within {report['logits_difference']:.1e}")
    done.record["recovery"] = result.recovery = {
        "kept": failure is None,
        "settings": asdict(recovering.training.recovery),
        "data": data.protocol,
        "losses": history.losses,
        "held_back": history.held_back,
    }
    done.recovered = True


def verdict(history, before: float | None = None, after: float | None = None) -> str | None:
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
        "Lower learning_rate, or give more recover_data."
    )


def adopt(folder: Path) -> None:
    """Put the recovered files in the place of the cut's; may be interrupted and done again."""
    out = folder / MERGED
    if out.exists():
        move_into(out, folder)
