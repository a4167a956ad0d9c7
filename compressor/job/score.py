"""The stage `score`: the first half of a job, whose outcome is a file."""

from dataclasses import replace
from pathlib import Path

from compressor.config.choices import ALLOCATIONS
from compressor.job.checks import check_method
from compressor.job.keeping import keeping, open_work
from compressor.job.opening import open_stream
from compressor.job.planning import measure_cuts
from compressor.job.progress import Lines, Meter
from compressor.job.reading import read_texts, reading_notes
from compressor.job.score_units import score_units
from compressor.job.settings import Settings, decisive
from compressor.model.checkpoint import Checkpoint
from compressor.repair.checks import check_repair


def score_file(settings: Settings, out: Path, lines: Lines) -> list[str]:
    """Score `settings.source` into the file `out`, which appears when it is complete; notes on it.

    What is done meanwhile is kept in a folder beside it, `out`.work.
    """
    checkpoint = Checkpoint(settings.source)
    check_method(settings, checkpoint)
    check_repair(settings.repair, None, checkpoint)
    if not ALLOCATIONS[settings.allocate].measured:  # nothing is refitted to measure it
        settings = replace(settings, repair="none")
    partial = out.with_name(out.name + ".partial")
    work, journal = open_work(settings)
    with Meter() as meter, keeping(work, lines, partial):
        texts = read_texts(settings, checkpoint)
        tokens = texts.calibration
        journal.agree("settings", decisive(settings, checkpoint, tokens))
        stream = open_stream(settings, checkpoint, work, tokens)
        found = score_units(settings, checkpoint, tokens, stream, meter, lines, work, journal)
        measure_cuts(settings, found, stream, tokens, work, meter, lines)
        found.save(partial)
        partial.replace(out)
    return reading_notes(settings, checkpoint, tokens) + texts.notes + found.about["notes"]
