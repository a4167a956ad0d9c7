"""The work folder of a job: what is kept of one that does not come to its end, and how it goes on.

In `DEST.work` are the journal, scores and plans, and for every pass over the blocks a folder of what
it found out of each (`saved_blocks.py`): `score`, `select`, `landscape`, `repair/RESULT`, `blocks` of
single weights, `quantize/RESULT`.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from compressor.config.runtime import Runtime
from compressor.errors import DamagedError, InputError
from compressor.job.destination import work_folder
from compressor.job.interruption import ending
from compressor.job.journal import VERSION, Journal, OtherSettings, OtherVersion
from compressor.model.pauses import STREAM
from compressor.model.saved_blocks import count_blocks

SCORES = "scores.safetensors"
AGREED = {VERSION, "settings", "recovery"}  # journaled to be compared with, not because it was work
# What entries of the journal are called.
WORDS = {
    "scored": "scores",
    "rated": "scores",
    "dropped blocks": "which blocks go",
    "kept channels": "which channels stay",
    "own": "the model's own text",
    "before": "the source's perplexity",
}
TEACHER = "teacher"  # what a training learns from
PARTS = {STREAM, f"{TEACHER}.unfinished"}  # folders of numbered files that are no blocks
ACTIVATIONS = "activations-*"  # of a pass that is over


def open_work(dest: Path, runtime: Runtime) -> tuple[Path, Journal]:
    """The work folder, new unless a job is resumed, and the journal in it.

    What an interrupted job has left there goes only with --overwrite, which replaces everything.
    """
    work = work_folder(dest, runtime.work_dir)
    if runtime.resume:
        journal = Journal.resume(work)
        for stale in work.glob(ACTIVATIONS):
            shutil.rmtree(stale, ignore_errors=True)
        return work, journal
    if (done := described(work)) and not runtime.overwrite:
        raise InputError(
            f"{work} holds what an interrupted job had done ({done}); add --resume to go on from there, "
            "or remove it to begin anew."
        )
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    return work, Journal(work, {})


def described(work: Path) -> str:
    """What of a work folder is worth going on from, in words; nothing where nothing is."""
    if not Journal.left_in(work):
        return ""  # nothing can go on from the rest, which was being removed when it was left
    try:
        entries = Journal.resume(work).entries
    except OtherVersion:
        entries = {"a journal of another version": True}
    except InputError:
        entries = {"a journal that is damaged": True}
    done = [WORDS.get(n, n) for n, value in entries.items() if n not in AGREED and value]
    for folder in sorted(folder for folder in work.rglob("*") if folder.is_dir()):
        name = folder.relative_to(work)
        if folder.name == STREAM and any(place.name.isdigit() for place in folder.iterdir()):
            done.append(f"the stream within {name.parent}")
        elif folder.name == TEACHER:
            done.append(TEACHER)
        elif not PARTS & {*name.parts} and (count := count_blocks(folder)):
            done.append(f"{count} block{'s' * (count > 1)} of {name}")
    done += sorted(file.stem for file in work.glob("*.safetensors"))
    return ", ".join(dict.fromkeys(done))


@contextmanager
def keeping(
    work: Path,
    lines,
    partial: Path,
    finished: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """The work folder while a job goes on in it: gone when the job is done, kept when it breaks off.

    Then the exception gets the attributes `where`, what the job was at, and `kept`, a sentence. Where
    nothing was done, or in vain (`DamagedError`), the folder goes too, and so does `partial`, the
    unfinished result, unless it is `finished` in part.
    """
    try:
        yield
    except BaseException as error:
        ending()
        error.where = lines.where  # type: ignore[attr-defined]
        vain = isinstance(error, DamagedError)
        if vain or not finished():
            shutil.rmtree(partial, ignore_errors=True)
        for stale in work.glob(ACTIVATIONS):
            shutil.rmtree(stale, ignore_errors=True)
        if described(work) and not vain:
            how = "" if isinstance(error, OtherSettings) else "; add --resume to go on"
            error.kept = f"What is done is kept in {work}{how}."  # type: ignore[attr-defined]
        else:
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)
