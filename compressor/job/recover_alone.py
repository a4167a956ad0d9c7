"""The stage `recover`: train a checkpoint that was cut before, perhaps on several GPUs.

    torchrun --nproc-per-node 4 -m compressor recover SMALL DEST --recover-config details.yaml

Every process trains, with the whole model or, where that does not fit, with its part of it; the first
one alone keeps the journal, writes, verifies, measures and publishes.
"""

from contextlib import nullcontext
from pathlib import Path

from compressor.config.ranks import rank
from compressor.config.recovery import RecoveryConfig
from compressor.config.runtime import Runtime
from compressor.config.text import TextConfig
from compressor.errors import InputError, QualityError
from compressor.job.asked import check_recovery
from compressor.job.destination import work_folder
from compressor.job.judging import STATES, Judge
from compressor.job.keeping import keeping, open_work
from compressor.job.needs import decisive
from compressor.job.opening import chosen_device, open_stream
from compressor.job.progress import Lines, Meter
from compressor.job.publishing import publish_result
from compressor.job.reading import read_texts, reading_notes
from compressor.job.recover import Recovering, recover_one
from compressor.job.recovery_data import STATE, agree_on_recovery, read_recovery
from compressor.job.result import Done, begun
from compressor.job.run import Run, partial_of
from compressor.model.checkpoint import Checkpoint
from compressor.quantization.dense import open_source
from compressor.recovery.precision import check_memory, held_bytes, room
from compressor.recovery.processes import chosen_sharding, joined
from compressor.recovery.stage import recover
from compressor.recovery.training import Training
from compressor.report.result import Result
from compressor.writing.locking import locked
from compressor.writing.record import read_record, write_record
from compressor.writing.side_files import left_behind

NAME = "recovery"


def recover_folder(
    source: Path,
    dest: Path,
    uncut: Path | None,
    recovery: RecoveryConfig,
    text: TextConfig,
    runtime: Runtime,
    lines: Lines,
) -> Result | None:
    """Recover `source` as `dest`; what came of it, None but in the first process.

    uncut: the checkpoint it was cut from, which `distill` learns from. `QualityError` if the training
    made it no better; then nothing is written.
    """
    check_recovery(source, dest, recovery, text, runtime)
    with locked(dest) if rank() == 0 else nullcontext():
        checkpoint = Checkpoint(source)
        recovery = recovery.of_width(checkpoint.hidden_size)
        teacher = teacher_of(checkpoint, uncut, recovery)
        device = chosen_device(runtime.device)
        processes = joined(device)
        weights = (checkpoint.parameters, checkpoint.dtype, device, runtime.dtype)
        fits = held_bytes(*weights, recovery.adapts) <= room(device, runtime.max_memory)
        sharding = chosen_sharding(processes, fits)
        parts = processes.num_processes if sharding else 1
        check_memory(*weights, runtime.max_memory, recovery.adapts, parts)
        if recovery.accumulate % processes.num_processes:
            raise InputError(
                f"{recovery.accumulate} parts of a step (recover_accumulate) cannot be divided among "
                f"{processes.num_processes} processes."
            )
        texts = read_texts(text, checkpoint, calibrates=False)
        data = read_recovery(recovery, text, runtime.seed, checkpoint, texts.training)
        if processes.is_main_process:
            work, journal = open_work(dest, runtime)
            agreed = decisive([text, runtime], checkpoint, texts.evaluation)
            journal.agree("settings", agreed)
            agree_on_recovery(recovery, data, work, journal)
        processes.wait_for_everyone()
        work, partial = work_folder(dest, runtime.work_dir), partial_of(dest)
        stream = open_stream(runtime, teacher, work, STATES, data)
        training = Training(recovery, data, runtime.seed, runtime.dtype, sharding)
        if not processes.is_main_process:
            recover(training, source, partial, work / (NAME + STATE), stream)
            return None

        with Meter() as meter, keeping(work, lines, partial):
            run = Run(partial, work, journal, meter, lines)
            judge = Judge(run, runtime, stream, texts.evaluation)
            chooses = text.evaluation is not None
            recovering = Recovering(training, stream, judge, chooses, runtime.verify)
            # The training removes nothing.
            sizes = {"parameters_after": checkpoint.parameters, "bytes_after": checkpoint.bytes}
            result = begun(checkpoint, dest, runtime.seed, **sizes, verified="")
            result.perplexity_pruned = pruned(judge, source)
            notes = reading_notes(text, checkpoint, texts.evaluation, data)
            result.warnings = [*notes, *texts.notes, *left_behind(checkpoint)]
            done = Done(result, {})
            recover_one(recovering, source, partial, work / NAME, done)
            better = done.record["recovery"]["kept"]
            if better:
                known = ("perplexity_pruned", "perplexity_after")
                measured = {name: getattr(result, name) for name in known}
                write_record(partial, read_record(partial) | done.record | measured)
                result.warnings += publish_result(partial, dest, runtime, checkpoint)
        if not better:
            raise QualityError(f"{result.warnings[-1]} Nothing was written to {dest}.")
        result.seconds = dict(meter.seconds)
        return result


def teacher_of(checkpoint: Checkpoint, uncut: Path | None, recovery: RecoveryConfig) -> Checkpoint:
    """What the training learns from and is measured against: the uncut model, if it is named."""
    if recovery.taught and uncut is None:
        raise InputError(
            f"--recover {recovery.method} learns from the uncut model; name it with --source."
        )
    teacher = open_source(uncut or checkpoint.path)
    if teacher.vocabulary != checkpoint.vocabulary:
        raise InputError(
            f"{uncut} has {teacher.vocabulary} tokens and {checkpoint.path} {checkpoint.vocabulary}; "
            "--source must be what it was cut from."
        )
    return teacher


def pruned(judge: Judge, source: Path) -> float | None:
    """The perplexity before the training; from the journal, if it is there."""
    journal = judge.run.journal
    if (perplexity := journal.get("pruned")) is None:
        measured = judge.after(source)
        perplexity = measured["perplexity"] if measured else None
        journal.put("pruned", perplexity)
    return perplexity
