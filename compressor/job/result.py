"""One result of a job: cut, repaired, written, verified, measured, judged."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from compressor.config.layouts import WriteConfig
from compressor.config.repair import RepairConfig
from compressor.config.target import WITHOUT_WIDTHS
from compressor.errors import InputError, MachineError
from compressor.job.depth.notes import depth_note
from compressor.job.job import Job
from compressor.job.micro_batches import PASSED, TRAINED, fitting
from compressor.job.needs import WantedResult
from compressor.job.planning import comparison_note
from compressor.job.proving import proved
from compressor.job.record import make_record
from compressor.job.run import Run
from compressor.job.sharing import together
from compressor.job.widths import open_alignment, open_reach, wanted_widths
from compressor.model.checkpoint import Checkpoint
from compressor.model.memory import trim_heap
from compressor.model.per_layer import code_of
from compressor.model.saved_blocks import count_blocks
from compressor.model.source import Source
from compressor.model.stream import BlockStream
from compressor.planning.costs import Costs
from compressor.planning.plan import Plan
from compressor.planning.reach import outside_note
from compressor.planning.told import width_notes
from compressor.repairing.streaming import Repair
from compressor.report.card import write_card
from compressor.report.drawing import PICTURE, draw
from compressor.report.result import Result, kept_in_record
from compressor.scoring.scores import Scores
from compressor.text.tokens import TokenSet
from compressor.writing.containers import container_notes
from compressor.writing.cuts import Cut, writer_of
from compressor.writing.record import write_record
from compressor.writing.side_files import left_behind
from compressor.writing.tokenizer_class import class_notes
from compressor.writing.writer import write_folder


@dataclass
class Done:
    """What is done of a result, as the journal keeps it.

    record: its compression.json. files: those of the quantised folder. scales: a folder of the scales of
    every block, where a pruning has found them.
    """

    result: Result
    record: dict
    recovered: bool = False
    files: list[str] | None = None
    scales: str | None = None

    def told(self) -> dict:
        return asdict(self)

    @classmethod
    def of(cls, told: dict | None) -> "Done | None":
        try:
            return cls(**told | {"result": Result(**told["result"])}) if told else None
        except (TypeError, KeyError) as error:
            raise InputError(
                f"The journal is damaged: what it says of a result is none ({error}); begin anew "
                "without --resume."
            ) from error


def open_repair(
    config: RepairConfig,
    stream: BlockStream,
    plan: Plan,
    tokens: TokenSet | None,
    saved: Path | None = None,
) -> Repair | None:
    """The repair that was asked for; `saved` keeps its finished blocks."""
    if config.kind == "none":
        return None
    return Repair(stream, plan, tokens, config.kind, config.epochs, saved)


def cut_one(
    job: Job,
    wanted: WantedResult,
    scores: Scores | None,
    plan: Plan,
    folder: Path,
    before: dict | None,
) -> Done:
    """Write one result, verify it and measure it."""
    config, checkpoint, run = job.config, job.checkpoint, job.run
    saved = run.work / "repair" / wanted.name
    repair = open_repair(config.repair, job.stream, plan, job.calibration, saved)
    writing = replace(config.write, layout=wanted.layout)
    writer = write_cut(run, checkpoint, plan, repair, writing, folder)
    result = described(job, wanted, writer)
    result.warnings += repair.warnings if repair else []
    result.warnings += layout_notes(wanted.layout, writer)
    result.perplexity_before = before["perplexity"] if before else None
    record = make_record(checkpoint, plan, writer.layout, writer.container, repair)
    record["evaluation"] = before and before["protocol"]
    write_record(folder, record)
    trim_heap()
    if config.runtime.verify:
        report = proved(run, config.runtime, folder, source=checkpoint.path)
        result.proven(f"logits within {report['logits_difference']:.1e}")
    written = Checkpoint(folder)
    result.warnings += container_notes(checkpoint, written, writer.layout)
    result.warnings += class_notes(checkpoint.path, folder)
    result.parameters_after, result.bytes_after = written.parameters, written.bytes
    if scores is not None:
        with run.meter.stage("draw"):
            widths = wanted_widths(config, wanted.layout).lattice(checkpoint, plan.about["align"])
            try:
                draw(folder / PICTURE, scores, plan, checkpoint, widths)
            except MachineError as missing:
                result.warnings.append(str(missing))
    result.measure(job.judge.after(folder))
    result.perplexity_pruned = result.perplexity_after
    return Done(result, record)


def write_cut(
    run: Run, source: Source, plan: Plan, repair: Repair | None, config: WriteConfig, folder: Path
) -> Cut:
    """Write the folder of a cut, block by block as each is repaired; what wrote it."""

    def written() -> Cut:
        if repair:
            how = (plan, repair.name, repair.epochs, repair.batch_tokens)
            repair.stream = together(run, repair.stream, repair.text, partial(repaired_with, *how))
        changes = run.meter.timed("repair", repair.blocks()) if repair else None
        writer = writer_of(source, plan, config.layout, config.container, changes)
        kept = count_blocks(repair.saved) if repair else 0
        with run.stage("write", kept, "repair" if repair else "write") as progress:
            write_folder(writer, folder, progress=progress)
        return writer

    if repair is None:
        return written()

    def repaired() -> Cut:
        shutil.rmtree(folder, ignore_errors=True)  # what was written when memory ran out
        return written()

    entry = TRAINED if repair.kind.refined else PASSED
    return fitting(run, repair, repair.text, repair.saved, repaired, entry=entry)


def repaired_with(
    plan: Plan,
    kind: str,
    epochs: int | None,
    batch_tokens: int,
    stream: BlockStream,
    text: TokenSet,
) -> None:
    """The repair in another rank than that which writes."""
    repair = Repair(stream, plan, text, kind, epochs)
    repair.batch_tokens = batch_tokens
    for _ in repair.blocks():
        pass


def begun(checkpoint: Source, dest: Path, seed: int, **known: Any) -> Result:
    """A result of `checkpoint`, of which is known what goes in, and what else is given."""
    return Result(
        source=str(checkpoint.path),
        dest=str(dest),
        model_type=checkpoint.family.model_type,
        container=known.pop("container", checkpoint.family.model_type),
        parameters_before=checkpoint.whole.parameters,
        bytes_before=checkpoint.whole.bytes,
        dropped_blocks=checkpoint.dropped or None,
        hidden_size=len(checkpoint.channels) or None,
        seed=seed,
        **known,
    )


def described(job: Job, wanted: WantedResult, writer: Cut) -> Result:
    """What is known of a result before it is measured."""
    config, checkpoint, target = job.config, job.checkpoint, wanted.target
    plan, about = writer.plan, writer.plan.about
    reach = open_reach(config, checkpoint)
    widths = []
    if target.kind not in WITHOUT_WIDTHS:
        alignment = open_alignment(config, checkpoint, target, wanted.layout)
        widths = [
            *outside_note(reach, Costs.of(checkpoint), [target]),
            *width_notes(alignment, checkpoint, plan.widths()),
            *comparison_note(plan),
        ]
    return begun(
        checkpoint,
        config.dest,
        config.runtime.seed,
        container=writer.container,
        method=about["scores"]["method"],
        mode=about["scores"]["mode"],
        layout=writer.layout,
        granularity="expert" if checkpoint.family.whole_experts else "channel",
        asked=asdict(target),
        keep_asked=f"{target.value:g}" if target.kind in ("keep", "keep-blocks") else None,
        budget=target.budget,
        budget_reached=about["budget_reached"],
        keep_reached=about["keep_reached"],
        keep_blocks_reached=about["keep_blocks_reached"],
        align=about["align"],
        align_wider=about["align_wider"],
        allocate=about["allocate"],
        held_back=about.get("held_back"),
        repair=config.repair.kind,
        outside_blocks=reach.described(),
        warnings=[
            *left_behind(checkpoint),
            *depth_note(job.depth),
            *widths,
        ],
    )


def layout_notes(asked: str, writer: Cut) -> list[str]:
    """Sentences about code that the result brings, and about a layout that was not needed."""
    notes, family = [], writer.source.family
    if not family.stock:
        files = ", ".join(file.name for file in code_of(family))
        notes.append(
            f"transformers has no class of {writer.container} with ALiBi, so the result brings its code "
            f"({files}) and loads with trust_remote_code=True alone."
        )
    if writer.layout != asked:
        notes.append(
            "All blocks came out with the same widths, so the result is uniform: it needs no code of "
            "its own and loads everywhere."
        )
    return notes


def conclude(
    limit: float | None,
    folder: Path,
    done: Done,
    card: Callable[[Path, Result, dict], None] = write_card,
) -> None:
    """Hold the result against --max-perplexity-ratio; write its record and its card."""
    result, after = done.result, done.result.perplexity_after
    measured = after is not None and limit is not None
    if measured and not after / result.perplexity_before <= limit:
        result.verified = "rejected"
    done.record |= kept_in_record(result)
    card(folder, result, write_record(folder, done.record))
