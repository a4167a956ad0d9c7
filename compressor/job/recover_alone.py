"""The stage `recover`: train a checkpoint that was cut before, perhaps on several GPUs.

    torchrun --nproc-per-node 4 -m compressor recover SMALL DEST --recover-data rows.jsonl

Every process trains; the first one alone keeps the journal, writes, verifies, measures and publishes.
"""

from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from compressor.errors import InputError, QualityError
from compressor.job.destination import check_dest, work_folder
from compressor.job.judging import Judge, said_of
from compressor.job.keeping import keeping, open_work
from compressor.job.opening import open_stream
from compressor.job.progress import Lines, Meter
from compressor.job.reading import read_texts, reading_notes
from compressor.job.recover import STATE, agree_on_recovery, read_recovery, recover_one
from compressor.job.settings import Settings, decisive
from compressor.model.checkpoint import Checkpoint
from compressor.recovery.precision import check_memory
from compressor.recovery.stage import recover
from compressor.recovery.training import Training
from compressor.writing.record import read_record, write_record
from compressor.writing.shards import publish
from compressor.writing.side_files import left_behind

NAME = "recovery"


def recover_folder(settings: Settings, uncut: Path | None, lines: Lines) -> dict | None:
    """Recover `settings.source` as `settings.dest`; what came of it, None but in the first process.

    uncut: the checkpoint it was cut from, which `distill` learns from. `QualityError` if the training
    made it no better; then nothing is written.
    """
    checkpoint = Checkpoint(settings.source)
    settings = replace(settings, recovery=settings.recovery.of_width(checkpoint.hidden_size))
    recovery, dest = settings.recovery, settings.dest
    recovery.check()
    check_dest(settings)
    if recovery.method == "distill" and uncut is None:
        raise InputError("--recover distill learns from the uncut model; name it with --source.")
    teacher = Checkpoint(uncut or settings.source)
    if teacher.vocabulary != checkpoint.vocabulary:
        raise InputError(
            f"{uncut} has {teacher.vocabulary} tokens and {settings.source} {checkpoint.vocabulary}; "
            "--source must be what it was cut from."
        )
    check_memory(
        checkpoint.parameters,
        checkpoint.dtype,
        settings.on_device,
        settings.dtype,
        settings.max_memory,
    )
    processes = PartialState(cpu=settings.on_device == "cpu")
    if recovery.accumulate % processes.num_processes:
        raise InputError(
            f"--recover-accumulate {recovery.accumulate} parts cannot be divided among "
            f"{processes.num_processes} processes."
        )
    texts = read_texts(settings, checkpoint)
    evaluation = texts.evaluation
    data = read_recovery(settings, checkpoint, texts.training)
    partial = dest.with_name(dest.name + ".partial")
    if processes.is_main_process:
        work, journal = open_work(settings)
        journal.agree("settings", decisive(settings, checkpoint, evaluation))
        agree_on_recovery(settings, data, work, journal)
    processes.wait_for_everyone()
    work = work_folder(settings)
    source = open_stream(settings, teacher, work, data)
    if not processes.is_main_process:
        asked = Training(recovery, data, settings.seed, settings.dtype)
        recover(asked, settings.source, partial, work / (NAME + STATE), source)
        return None

    with Meter() as meter, keeping(work, lines, partial):
        judge = Judge(settings, source, evaluation, work, meter, lines)
        before = journal.get("pruned")
        if before is None:
            before = said_of(judge.after(settings.source))["perplexity_after"]
            journal.put("pruned", before)
        warnings = reading_notes(settings, checkpoint, evaluation, data) + texts.notes
        warnings += left_behind(checkpoint)
        result = {"perplexity_pruned": before, "warnings": warnings, "verified": ""}
        done = {"result": result, "record": {}, "recovered": False}
        stem = work / NAME
        recover_one(
            settings, data, settings.source, partial, stem, done, source, judge, meter, lines
        )
        better = done["record"]["recovery"]["kept"]
        if better:
            former = read_record(partial) if (partial / "compression.json").exists() else {}
            known = {name: result[name] for name in ("perplexity_pruned", "perplexity_after")}
            write_record(partial, former | done["record"] | known)
            publish(partial, dest)
    if not better:
        raise QualityError(f"{result['warnings'][-1]} Nothing was written to {dest}.")
    return result | {"dest": str(dest), "seconds": dict(meter.seconds)}
