"""What of a sweep is there already, and whether the rest can be made: before anything is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor.config.job import JobConfig, job_config
from compressor.config.json_files import read_object
from compressor.config.json_shapes import misfit
from compressor.config.ranks import world
from compressor.config.sweep import Sweep, in_words, name_results
from compressor.errors import InputError
from compressor.job.asked import check_asked
from compressor.job.destination import work_folder
from compressor.job.journal import Journal
from compressor.report.swept import Row
from compressor.writing.record import RECORD

TABLE = "sweep.json"
PICKED = "picked"
SHAPE = {"fingerprint": str, "rows": [{"name": str, "options": dict}]}


@dataclass(frozen=True)
class Begun:
    """A sweep, the rows of its table, and the fingerprint of the source that those which are there are
    of. dropped: results that are there, and that the file no longer asks for.
    """

    sweep: Sweep
    dest: Path
    rows: list[Row]
    overwrite: bool
    fingerprint: str | None
    dropped: tuple[str, ...] = ()

    def folder(self, row: Row) -> Path | None:
        """Where a result is, if it is there."""
        places = (self.dest / row.name, self.dest / f"{row.name}.rejected")
        return next((place for place in places if (place / RECORD).exists()), None)

    def config(self, row: Row) -> JobConfig:
        """The config of a result's job, which goes on where an interrupted one was."""
        dest = self.dest / row.name
        left = Journal.left_in(work_folder(dest, None))
        own = {"resume": left and not self.overwrite, "overwrite": self.overwrite}
        return job_config(self.sweep.source, dest, **row.options, **own)


def begin(sweep: Sweep, dest: Path, resume: bool, overwrite: bool) -> Begun:
    """The sweep as it is to go on; `InputError`, by the run, for what no source could make right."""
    told: dict = {}
    if world() > 1:
        raise InputError(
            f"A sweep runs in one process, and there are {world()}; start it without torchrun, "
            "or one of its jobs (`compress`) with it."
        )
    if resume and overwrite:
        raise InputError("--resume goes on with a sweep and --overwrite begins anew; give one.")
    if (dest / TABLE).exists():
        told = read_table(dest / TABLE)
    elif resume:
        raise InputError(f"There is no sweep in {dest} to resume: it has no {TABLE}.")
    elif dest.exists() and not (dest.is_dir() and not any(dest.iterdir())):
        raise InputError(f"{dest} exists and holds no sweep; choose another DEST.")
    if told and not (resume or overwrite):
        raise InputError(
            f"{dest} holds a sweep; add --resume to go on with it, or --overwrite to make all anew."
        )
    former = told.get("rows", []) if resume else []
    rows = [Row(name, options) for name, options in named(sweep, former).items()]
    names = {row.name for row in rows}
    dropped = tuple(
        r["name"] for r in former if r["name"] not in names and (dest / r["name"]).exists()
    )
    known = None if overwrite else told.get("fingerprint")
    begun = Begun(sweep, dest, rows, overwrite, known, dropped)
    for row in rows:
        if overwrite or begun.folder(row) is None:
            try:
                check_asked(begun.config(row))
            except InputError as error:
                raise InputError(f"{sweep.file}, {in_words(row.options)}: {error}") from error
    return begun


def read_table(file: Path) -> dict:
    """What of a former table counts: the names of results and what they were asked for."""
    told = read_object(file)
    wrong = misfit(told, SHAPE)
    strange = [row for row in told.get("rows", []) if not wrong and not plain(row["name"])]
    if wrong or strange:
        raise InputError(
            f"{file} is not what this package writes: {wrong or 'it names no folders'}."
        )
    return told


def plain(name: str) -> bool:
    return Path(name).name == name and not name.startswith(".")


def named(sweep: Sweep, former: Sequence[dict]) -> dict[str, dict]:
    """The runs by names of folders, which they keep where they had some."""
    known = [(row["name"], row["options"]) for row in former]
    old = {name: options for name, options in known if options in sweep.wanted.values()}
    new = [options for options in sweep.wanted.values() if options not in old.values()]
    fresh = dict(sweep.wanted) if not known else {}
    if known and new:
        every = name_results([*sweep.wanted.values()], [name for name, _ in known])
        fresh = {name: options for name, options in every.items() if options in new}
    names = {**old, **fresh}
    return {
        name: options
        for wanted in sweep.wanted.values()
        for name, options in names.items()
        if options == wanted
    }
