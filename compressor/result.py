"""One result of a job: cut, repaired, written, verified, measured, judged."""

import json
import shutil
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import torch

from compressor import __version__
from compressor.allocation.options import open_alignment, open_reach, wanted_widths
from compressor.allocation.reach import outside_note
from compressor.allocation.told import width_notes
from compressor.blocks import BlockStream
from compressor.calibration import TokenSet
from compressor.checkpoint import Checkpoint
from compressor.containers import container_notes
from compressor.destination import check_dest
from compressor.drawing import PICTURE, draw
from compressor.errors import MachineError
from compressor.forecast import Forecast
from compressor.journal import count_blocks
from compressor.judging import Judge, said_of
from compressor.keeping import keeping, open_work
from compressor.memory import trim_heap
from compressor.opening import open_stream, read_texts, reading_notes
from compressor.per_layer import code_of
from compressor.plan import Costs, Plan
from compressor.planning import comparison_note
from compressor.progress import Lines, Meter
from compressor.repair import check_repair
from compressor.repair.streaming import Repair
from compressor.report import versions, write_card, write_record
from compressor.settings import Settings, decisive
from compressor.shards import publish
from compressor.side_files import left_behind
from compressor.tokenizer_class import class_notes
from compressor.verify import verify
from compressor.writing import layout_of, write


def open_repair(
    settings, stream: BlockStream, plan: Plan, tokens: TokenSet, saved: Path | None = None
) -> Repair | None:
    """The repair that was asked for; `saved` keeps its finished blocks."""
    if settings.repair == "none":
        return None
    return Repair(stream, plan, tokens, settings.repair, settings.refine_epochs, saved)


def cut_one(
    settings,
    checkpoint,
    scores,
    plan: Plan,
    target,
    folder,
    judge: Judge,
    before: dict | None,
    meter,
    lines,
    repair,
) -> tuple[dict, dict]:
    """Write one result, verify it and measure it; what to say of it and its compression.json."""
    layout = layout_of(plan, settings.layout, checkpoint.family)
    kept = count_blocks(repair.saved) if repair else 0
    reach = open_reach(settings, checkpoint)
    with meter.stage("write"), lines.stage("repair" if repair else "write", kept) as progress:
        container = write(
            checkpoint,
            plan,
            folder,
            layout,
            settings.container,
            progress=progress,
            changes=repair and meter.timed("repair", repair.blocks()),
        )
    result = {
        "source": str(checkpoint.path),
        "dest": str(settings.dest),
        "method": plan.about["scores"]["method"],
        "mode": plan.about["scores"]["mode"],
        "allocate": plan.about["allocate"],
        "held_back": plan.about.get("held_back"),
        "repair": settings.repair,
        "layout": layout,
        "container": container,
        "model_type": checkpoint.family.model_type,
        "asked": asdict(target),
        "keep_asked": f"{target.value:g}" if "keep" in target.kind else None,
        "budget": target.budget,
        "budget_reached": plan.about["budget_reached"],
        "keep_reached": plan.about["keep_reached"],
        "keep_blocks_reached": plan.about["keep_blocks_reached"],
        "align": plan.about["align"],
        "align_wider": plan.about["align_wider"],
        "parameters_before": checkpoint.parameters,
        "bytes_before": checkpoint.bytes,
        "perplexity_before": before and before["perplexity"],
        "perplexity_pruned": None,
        **said_of(None),
        "seed": settings.seed,
        "recovery": None,
        "quantization": None,
        "outside_blocks": reach.described(),
        "warnings": left_behind(checkpoint)
        + outside_note(reach, Costs.of(checkpoint), [target])
        + width_notes(open_alignment(settings, checkpoint, target), checkpoint, plan.widths())
        + comparison_note(plan)
        + (repair.warnings if repair else []),
        "verified": "no",
    }
    if not checkpoint.family.stock:
        result["warnings"].append(
            f"transformers has no class of {container} with ALiBi, so the result brings its code "
            f"({', '.join(file.name for file in code_of(checkpoint.family))}) and loads with "
            "trust_remote_code=True alone."
        )
    if layout != settings.layout:
        result["warnings"].append(
            "All blocks came out with the same widths, so the result is uniform: it needs no code of "
            "its own and loads everywhere."
        )
    record = make_record(checkpoint, plan, layout, container, repair)
    record["evaluation"] = before and before["protocol"]
    write_record(folder, record)
    trim_heap()
    if settings.verify:
        with meter.stage("verify"), lines.stage("verify") as progress:
            found = verify(folder, checkpoint.path, progress=progress)
        result["verified"] = f"logits within {found['logits_difference']:.1e}"
    written = Checkpoint(folder)
    result["warnings"] += container_notes(checkpoint, written, layout)
    result["warnings"] += class_notes(checkpoint.path, folder)
    result["parameters_after"], result["bytes_after"] = written.parameters, written.bytes
    with meter.stage("draw"):
        widths = wanted_widths(settings).lattice(checkpoint, plan.about["align"])
        try:
            draw(folder / PICTURE, scores, plan, checkpoint, widths)
        except MachineError as missing:
            result["warnings"].append(str(missing))
    result |= said_of(judge.after(folder))
    result["perplexity_pruned"] = result["perplexity_after"]
    return result, record


def conclude(settings, folder: Path, result: dict, record: dict, write_card=write_card) -> None:
    """Hold the result against --max-perplexity-ratio; write its record and its card."""
    limit, after = settings.max_perplexity_ratio, result["perplexity_after"]
    measured = after is not None and limit is not None
    if measured and not after / result["perplexity_before"] <= limit:
        result["verified"] = "rejected"
    kept = ("keep_asked", "parameters_before", "parameters_after", "bytes_before", "bytes_after")
    perplexities = ("perplexity_before", "perplexity_pruned", "perplexity_after")
    perplexities += ("perplexity_unquantized", "kl", "agreement")
    names = (*kept, "align", "align_wider", "outside_blocks", *perplexities, "verified")
    record |= {name: result[name] for name in names if name in result}
    write_record(folder, record)
    write_card(folder, result, record)


def publish_results(
    settings, results: list[dict], partial: Path, meter: Meter, foreseen: Forecast
) -> None:
    """Give the complete folder its name, and say in the results what the job took, and was to."""
    final = settings.dest
    if len(results) == 1 and results[0]["verified"] == "rejected":
        final = settings.dest.with_name(settings.dest.name + ".rejected")
        results[0]["dest"] = str(final)
    publish(partial, final)
    for result in results:
        result["seconds"] = dict(meter.seconds)
        result["peak_rss_bytes"] = meter.peak_rss
        result["forecast"] = foreseen.told
        cuda = torch.cuda.is_available()
        result["peak_gpu_bytes"] = torch.cuda.max_memory_allocated() if cuda else 0


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


def make_record(
    checkpoint: Checkpoint, plan: Plan, layout: str, container: str, repair: Repair | None = None
) -> dict:
    """What compression.json holds of every result."""
    return base_record(checkpoint) | {
        "plan": {"blocks": plan.blocks, "about": plan.about},
        "repair": repair and repair.about,
        "layout": layout,
        "container": container,
    }


def base_record(checkpoint: Checkpoint) -> dict:
    """Where a result comes from, and what it was made with."""
    return {
        "format": 1,
        "compressor": __version__,
        "source": {"name": checkpoint.path.name, "fingerprint": checkpoint.fingerprint},
        "versions": versions(),
    }
