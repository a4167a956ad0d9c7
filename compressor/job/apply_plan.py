"""The stage `cut`: a plan of an earlier run on a checkpoint."""

import json
import shutil
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from compressor.config.layouts import WriteConfig
from compressor.config.repair import RepairConfig
from compressor.config.runtime import Runtime
from compressor.config.text import TextConfig
from compressor.job.depth.dropping import folded_source
from compressor.job.destination import check_dest
from compressor.job.needs import FOLDING, decisive, repair_states
from compressor.job.opening import open_stream
from compressor.job.own_text import choose_text, own_text
from compressor.job.progress import Lines
from compressor.job.proving import proved
from compressor.job.publishing import publish_result
from compressor.job.reading import read_texts, reading_notes
from compressor.job.record import make_record
from compressor.job.result import open_repair, write_cut
from compressor.job.run import open_run
from compressor.model.checkpoint import Checkpoint
from compressor.model.fewer_blocks import without
from compressor.model.fewer_channels import narrower
from compressor.planning.plan import Plan
from compressor.quantization.dense import open_source
from compressor.repairing.streaming import check_repair, check_text
from compressor.writing.containers import container_notes
from compressor.writing.cuts import writer_of
from compressor.writing.record import write_record
from compressor.writing.side_files import left_behind
from compressor.writing.tokenizer_class import class_notes


def apply_plan(
    source: Path,
    dest: Path,
    plan: Plan,
    text: TextConfig,
    repair: RepairConfig,
    writing: WriteConfig,
    runtime: Runtime,
    lines: Lines,
) -> str:
    """Write a plan's result as `dest`, verified; sentences about it.

    Repaired blocks are kept in a folder beside DEST meanwhile.
    """
    whole = plan.seen(open_source(source))
    checkpoint = narrower(without(whole, plan.dropped), plan.channels)
    plan.check(checkpoint)
    check_repair(repair.kind, repair.epochs, checkpoint)
    check_dest(source, dest, runtime)
    writer_of(checkpoint, plan, writing.layout, writing.container)  # refuses what cannot be written
    with open_run(dest, runtime, lines) as run:
        shutil.rmtree(run.partial, ignore_errors=True)
        repaired = repair.kind != "none" or plan.folds
        text, chosen = choose_text(text, whole, runtime, run, repaired)
        own = own_text(text, whole, runtime, run) if repaired else None
        calibration = read_texts(text, whole, repaired, own).calibration
        if calibration is not None:
            check_text(repair.kind, calibration)
        agreed = decisive([text, repair, writing, runtime], whole, calibration)
        planned = sha256(json.dumps(asdict(plan)).encode()).hexdigest()
        run.journal.agree("settings", agreed | {"the plan's SHA-256": planned})
        states = max(repair_states(repair.kind), FOLDING * plan.folds)
        stream = open_stream(runtime, whole, run.work, states, calibration)
        if plan.dropped:
            fitted = calibration if plan.folds else None
            checkpoint = folded_source(run, stream, plan.dropped, fitted)
            stream = stream.without(checkpoint)
        if plan.channels:
            stream = stream.without(checkpoint)
        repairing = open_repair(repair, stream, plan, calibration, run.work / "repair")
        writer = write_cut(run, checkpoint, plan, repairing, writing, run.partial)
        record = make_record(checkpoint, plan, writer.layout, writer.container, repairing)
        write_record(run.partial, record)
        proof = "not verified"
        if runtime.verify:
            report = proved(run, runtime, run.partial, source=source)
            proof = f"verified, logits within {report['logits_difference']:.1e}"
        written = Checkpoint(run.partial)
        changed = publish_result(run.partial, dest, runtime, whole)
    said = f"{dest}: {written.parameters:,} of {whole.parameters:,} parameters, {proof}"
    notes = [*reading_notes(text, checkpoint, calibration), *chosen, *left_behind(checkpoint)]
    notes += container_notes(checkpoint, written, writer.layout) + class_notes(
        checkpoint.path, dest
    )
    notes += [*(repairing.warnings if repairing else []), *changed]
    return "\n".join([said, *notes])
