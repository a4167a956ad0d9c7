"""Where a result may go: DEST and the folders beside it, judged before anything is read."""

import hashlib
import os
from pathlib import Path

from compressor.config.runtime import Runtime
from compressor.errors import InputError
from compressor.writing.locking import END as LOCKED
from compressor.writing.record import RECORD

# DEST with these ends is what a job makes or removes, apart from DEST itself and the work folder.
BESIDE = (".partial", ".old", ".rejected", ".rejected.old", LOCKED)


def check_dest(source: Path, dest: Path, runtime: Runtime) -> None:
    """DEST can be made, and making it touches neither the source nor what no run has written."""
    source = real(source)
    if dest.name in ("", ".."):
        raise InputError(
            f"DEST is {str(dest)!r}, which names no new folder; give one, such as ./small."
        )
    touched = [dest, *(dest.with_name(dest.name + end) for end in BESIDE)]
    for path in (*touched, work_folder(dest, runtime.work_dir)):
        if real(path) in (source, *source.parents):
            raise InputError(
                f"{path} holds the source {source}, and the job makes or removes that folder; choose "
                "another DEST."
            )
    for path in (dest, dest.with_name(dest.name + ".rejected")):
        if path.exists() and not runtime.overwrite:
            raise InputError(f"{path} exists; choose another DEST or pass --overwrite.")
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise InputError(f"{path} is not a folder and is not replaced; choose another DEST.")
        if path.exists() and not is_result(path):
            raise InputError(
                f"{path} holds no {RECORD}, nor is it a folder of such results alone: it is not the "
                "result of a former run and is not replaced; choose another DEST, or remove it."
            )
    for path in (*touched[1:], work_folder(dest, runtime.work_dir)):
        if path.is_symlink():
            raise InputError(
                f"{path} is a link, and the job would write to where it leads; remove it, or choose "
                "another DEST."
            )
    check_place(dest, dest.parent, source, "DEST")
    if (work_dir := runtime.work_dir) is not None:
        for path in touched:
            check_outside(
                work_dir, real(path), "--work-dir", "the job's own folder", "it makes or removes"
            )
        check_place(work_dir, work_dir, source, "--work-dir")


def check_place(path: Path, folder: Path, source: Path, called: str) -> None:
    """What is made in `folder` is made neither in the source, nor in a file, nor in another result."""
    check_outside(path, source, called)
    parents = (folder.absolute(), *folder.absolute().parents)  # those that are missing are made
    existing = next(parent for parent in parents if parent.exists() or parent.is_symlink())
    if not existing.is_dir():
        what = "file" if existing.exists() else "link that leads nowhere"
        raise InputError(f"{called} would lie in {existing}, which is a {what}; choose another.")
    for parent in (real(folder), *real(folder).parents):
        if (parent / RECORD).exists():
            raise InputError(
                f"{called} {path} lies in {parent}, which is a result itself ({RECORD} is in it); "
                "choose a folder outside."
            )


def check_outside(
    path: Path, other: Path, called: str, what: str = "the source", why: str = "is left as it is"
) -> None:
    """Refuse a path that is another folder, or lies in it."""
    if other in (real(path), *real(path).parents):
        raise InputError(
            f"{called} {path} lies in {what} {other}, which {why}; choose a folder outside."
        )


def real(path: Path) -> Path:
    """Where links lead; unlike `path.resolve()`, links that lead in a circle raise nothing."""
    return Path(os.path.realpath(path))


def work_folder(dest: Path, work_dir: Path | None) -> Path:
    """DEST.work, or a folder of DEST's own in --work-dir (which is the user's)."""
    dest = dest.absolute()
    if work_dir is None:
        return dest.with_name(dest.name + ".work")
    digest = hashlib.sha256(str(dest).encode()).hexdigest()[:12]
    return work_dir / f"{dest.name}.work-{digest}"


def is_result(folder: Path) -> bool:
    """What a run has written, or several results of one and nothing else, or nothing.

    Hidden files beside several results (.DS_Store) do not count.
    """
    entries = list(folder.iterdir())
    shown = [each for each in entries if not (each.name.startswith(".") and each.is_file())]
    if not shown:
        return not entries
    return (folder / RECORD).exists() or all((each / RECORD).exists() for each in shown)
