"""A sweep from its first result to its table. A result that fails is a row, and the others go on."""

import json
import shutil
import time
from pathlib import Path

from compressor.config.hub_names import called
from compressor.errors import (
    CompressorError,
    InputError,
    MachineError,
    QualityError,
    VerificationError,
    as_error,
    exit_code_of,
    in_a_line,
)
from compressor.job.compress import run_job
from compressor.job.interruption import asked, going_on
from compressor.job.progress import Lines
from compressor.job.schedule import words
from compressor.job.shelf import Shelf
from compressor.job.sweep.beginning import TABLE, Begun
from compressor.model.memory import trim_heap
from compressor.model.widths import model_widths
from compressor.model.work import parts
from compressor.quantization.dense import open_source
from compressor.quantization.reading import open_model
from compressor.report.sweep_page import draw, write_page
from compressor.report.swept import DONE, FAILED, REJECTED, Row, write_csv
from compressor.writing.record import read_record

SHARED = "shared"  # what results find out for each other
CONTEXT = 2048  # tokens, or as many as a model has positions, behind which FLOPs are counted
KINDS: dict[int, type[CompressorError]] = {
    each.exit_code: each for each in (InputError, QualityError, MachineError, VerificationError)
}


def run_sweep(begun: Begun, lines: Lines) -> None:
    """Make what is not there yet; afterwards the table says all of it, whatever failed."""
    dest, rows = begun.dest, begun.rows
    fingerprint = open_source(begun.sweep.source).fingerprint
    if begun.fingerprint not in (None, fingerprint):
        raise InputError(
            f"{begun.sweep.source} is not what the results in {dest} were made of; choose another DEST, "
            "or --overwrite them."
        )
    dest.mkdir(parents=True, exist_ok=True)
    for row in rows if begun.overwrite else ():
        while (former := begun.folder(row)) is not None:  # which may be of other options
            shutil.rmtree(former)
    ahead = [row for row in rows if begun.folder(row) is None]
    write_table(begun, fingerprint)
    since = time.monotonic()
    try:
        for row in rows:
            if row in ahead:
                going_on()
                done, many = ahead.index(row), len(ahead)
                each = (time.monotonic() - since) / done if done else None
                left = f", about {words(each * (many - done))} left" if done else ""
                lines.fact("result", f"{row.name}, {done + 1} of {many}{left}")
                make(begun, row, lines)
            if row.state != FAILED:
                measure(row, begun.folder(row))
            write_table(begun, fingerprint)
    except BaseException as error:
        there = sum(row.made for row in rows)
        error.kept = (  # type: ignore[attr-defined]
            f"{there} of {len(rows)} results are in {dest}; add --resume to go on."
        )
        raise


def make(begun: Begun, row: Row, lines: Lines) -> None:
    """Run the job of a row; why it failed is the row's."""
    try:
        run_job(begun.config(row), lines, Shelf(begun.dest / SHARED))
    except QualityError:
        return  # the folder says so, too
    except Exception as error:
        if asked():  # a signal that a library has made this of
            raise
        known = as_error(error)
        row.state, row.exit_code = FAILED, exit_code_of(error)
        row.sentence = str(known) if known else f"{type(error).__name__}: {in_a_line(error)}"
        lines.fact("failed", row.sentence)
    finally:
        trim_heap()


def measure(row: Row, folder: Path) -> None:
    """Take in what the folder of a result says."""
    record = read_record(folder)
    row.measure(record, flops_per_token(folder))
    row.state = REJECTED if record.get("verified") == "rejected" else DONE
    if row.state == REJECTED:
        row.exit_code = QualityError.exit_code
        worse = f"its perplexity is {row.times:.3f} times the source's"
        row.sentence = f"{worse}, more than --max-perplexity-ratio allows."


def flops_per_token(folder: Path) -> int | None:
    """Of one token's forward pass; None of what is not counted (`compressor estimate` says why)."""
    try:
        model = open_model(folder)
        widths = model_widths(model)
    except InputError:
        return None
    context = min(CONTEXT, model.positions or CONTEXT)
    return sum(part.decode.flops for part in parts(widths, 1, context))


def write_table(begun: Begun, fingerprint: str, **more) -> None:
    """sweep.json and sweep.csv, each at once and whole."""
    told = {
        "source": called(begun.sweep.source),
        "fingerprint": fingerprint,
        "rows": [row.told() for row in begun.rows],
        **more,
    }
    file = begun.dest / TABLE
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(file)
    write_csv(file.with_suffix(".csv"), begun.rows)


def show(begun: Begun) -> list[str]:
    """sweep.svg and sweep.html; a sentence where there is nothing to draw with."""
    picture, source = begun.dest / "sweep.svg", called(begun.sweep.source)
    missing = []
    try:
        draw(picture, begun.rows, source)
    except MachineError as error:
        picture.unlink(missing_ok=True)
        missing = [str(error)]
    write_page(begun.dest / "sweep.html", begun.rows, source, picture)
    return missing


def check_rows(begun: Begun) -> None:
    """The failure of a sweep of which not all came out, by the kind of the first."""
    wrong = [row for row in begun.rows if row.exit_code]
    if not wrong:
        return
    first = next((row for row in wrong if row.state == FAILED), wrong[0])
    error = KINDS.get(first.exit_code, CompressorError)(
        f"{len(wrong)} of {len(begun.rows)} results are not as asked "
        f"({', '.join(row.name for row in wrong)}); {begun.dest / TABLE} says why, and --resume tries "
        "again what failed."
    )
    error.exit_code = first.exit_code
    error.results = begun.rows  # type: ignore[attr-defined]
    raise error
