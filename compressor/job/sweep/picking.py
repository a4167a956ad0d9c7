"""The smallest result that a rule holds of, published under a name of its own."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from compressor.config.picking import Rule
from compressor.errors import InputError, QualityError
from compressor.job.sweep.beginning import PICKED
from compressor.report.swept import DONE, Row
from compressor.writing.record import RECORD
from compressor.writing.shards import flush, publish


def picked(rows: Sequence[Row], rule: Rule) -> Row:
    """The smallest of the rows that the rule holds of, and of equally small ones the best by its
    measure; `QualityError` with the nearest where there is none.
    """
    figures = [(row, getattr(row, rule.about)) for row in rows if row.state == DONE]
    known = [(row, value) for row, value in figures if value is not None]
    if not known:
        raise QualityError(f"No result has {rule.text}: of none {rule.measure} is known.", rows)
    holding = [row for row, value in known if rule.holds(value)]
    if holding:
        return min(holding, key=lambda row: (row.bytes, rule.badness(getattr(row, rule.about))))
    row, value = min(known, key=lambda pair: abs(pair[1] - rule.value))
    raise QualityError(
        f"No result has {rule.text}; the nearest is {row.name} with {rule.shown(value)}. Keep more, or "
        "allow more.",
        rows,
    )


def publish_picked(dest: Path, row: Row | None) -> None:
    """Make DEST/picked this result; its files are links to the same data where there can be such. None:
    there is none, nor one of a former rule.
    """
    final, partial = dest / PICKED, dest / f"{PICKED}.partial"
    if final.exists() and not (final / RECORD).exists():
        raise InputError(f"{final} is no result and is not replaced; move it away.")
    if row is None:
        shutil.rmtree(final, ignore_errors=True)
        return
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(dest / row.name, partial, copy_function=link)
    flush(partial)
    publish(partial, final, replace=True)


def link(source: str, copy: str) -> None:
    try:
        os.link(source, copy)
    except OSError:  # a file system without
        shutil.copy2(source, copy)
