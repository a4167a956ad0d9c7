"""The stage `cut`: a plan of an earlier run on a checkpoint."""

import json
import shutil
from dataclasses import asdict
from hashlib import sha256

from compressor.job.destination import check_dest
from compressor.job.keeping import keeping, open_work
from compressor.job.opening import open_stream
from compressor.job.progress import Lines, Meter
from compressor.job.reading import read_texts, reading_notes
from compressor.job.result import make_record, open_repair
from compressor.job.settings import Settings, decisive
from compressor.model.checkpoint import Checkpoint
from compressor.model.saved_blocks import count_blocks
from compressor.planning.plan import Plan
from compressor.repair.checks import check_repair
from compressor.verification.verify import verify
from compressor.writing.containers import container_notes
from compressor.writing.layouts import layout_of
from compressor.writing.record import write_record
from compressor.writing.shards import publish
from compressor.writing.side_files import left_behind
from compressor.writing.tokenizer_class import class_notes
from compressor.writing.write import write


def apply_plan(settings: Settings, plan: Plan, lines: Lines) -> str:
    """The stage `cut`: write a plan's result under DEST, verified; sentences about it.

    Repaired blocks are kept in a folder beside DEST meanwhile.
    """
    checkpoint, dest = Checkpoint(settings.source), settings.dest
    check_repair(settings.repair, settings.refine_epochs, checkpoint)
    check_dest(settings)
    partial = dest.with_name(dest.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    work, journal = open_work(settings)
    with Meter() as meter, keeping(work, lines, partial):
        calibration = read_texts(settings, checkpoint).calibration
        planned = {"the plan's SHA-256": sha256(json.dumps(asdict(plan)).encode()).hexdigest()}
        journal.agree("settings", decisive(settings, checkpoint, calibration) | planned)
        stream = open_stream(settings, checkpoint, work, calibration)
        saved = work / "repair"
        repair = open_repair(settings, stream, plan, calibration, saved)
        layout = layout_of(plan, settings.layout, checkpoint.family)
        with lines.stage("repair" if repair else "write", count_blocks(saved)) as progress:
            chosen = write(
                checkpoint,
                plan,
                partial,
                layout,
                settings.container,
                progress=progress,
                changes=repair and repair.blocks(),
            )
        write_record(partial, make_record(checkpoint, plan, layout, chosen, repair))
        difference = None
        if settings.verify:
            with meter.stage("verify"), lines.stage("verify") as progress:
                found = verify(partial, settings.source, progress=progress)
            difference = found["logits_difference"]
        written = Checkpoint(partial)
        publish(partial, dest)
    proof = "not verified" if difference is None else f"verified, logits within {difference:.1e}"
    found = f"{dest}: {written.parameters:,} of {checkpoint.parameters:,} parameters, {proof}"
    notes = reading_notes(settings, checkpoint, calibration) + left_behind(checkpoint)
    notes += container_notes(checkpoint, written, layout) + class_notes(checkpoint.path, dest)
    notes += repair.warnings if repair else []
    return "\n".join([found, *notes])
