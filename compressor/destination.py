"""Where a result may go: DEST and the folders beside it, judged before anything is read."""

from pathlib import Path

from compressor.errors import InputError

RECORD = "compression.json"  # what every result has


def check_dest(settings) -> None:
    """DEST can be made, and making it touches neither the source nor what no run has written."""
    dest, source = settings.dest, settings.source.resolve()
    if dest.name in ("", ".."):
        raise InputError(
            f"DEST is {str(dest)!r}, which names no new folder; give one, such as ./small."
        )
    for path in (dest, dest.with_name(dest.name + ".rejected")):
        if path.exists() and not settings.overwrite:
            raise InputError(f"{path} exists; choose another DEST or pass --overwrite.")
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise InputError(f"{path} is not a folder and is not replaced; choose another DEST.")
        if path.resolve() == source or path.resolve() in source.parents:
            raise InputError(f"{path} holds the source {source}; choose another DEST.")
        if path.exists() and not is_result(path):
            raise InputError(
                f"{path} holds no compression.json, so it is not the result of a former run and is not "
                "replaced; choose another DEST, or remove it."
            )
    check_place(dest, source)
    if (given := settings.work_dir) is not None:
        check_outside(given, source, "--work-dir")
        check_outside(given, dest.resolve(), "--work-dir", "DEST")
        check_parents_are_folders(given / "work", "--work-dir")


def check_place(dest: Path, source: Path) -> None:
    """Nothing is written into the source, and not into another result."""
    check_outside(dest, source, "DEST")
    check_parents_are_folders(dest, "DEST")
    for parent in dest.resolve().parents:
        if (parent / RECORD).exists():
            raise InputError(
                f"DEST {dest} lies in {parent}, which is a result itself ({RECORD} is in it); choose "
                "a folder outside."
            )


def check_outside(path: Path, other: Path, called: str, what: str = "the source") -> None:
    """Refuse a path that is another folder, or lies in it."""
    if other in (path.resolve(), *path.resolve().parents):
        raise InputError(
            f"{called} {path} lies in {what} {other}, which is left as it is; choose a folder outside."
        )


def check_parents_are_folders(path: Path, called: str) -> None:
    """Missing parents are made; what stands in their place must be folders."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise InputError(f"{called} would lie in {existing}, which is a file; choose another.")


def is_result(folder: Path) -> bool:
    """What a run has written, or several results of one, or nothing."""
    results = (*folder.glob(RECORD), *folder.glob(f"*/{RECORD}"))
    return bool(results) or not any(folder.iterdir())
