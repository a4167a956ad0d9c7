"""One result of a job: cut, repaired, written, verified, measured, judged."""

import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from compressor import __version__
from compressor.blocks import BlockStream
from compressor.calibration import TokenSet
from compressor.checkpoint import Checkpoint
from compressor.checks import check_dest
from compressor.containers import container_notes
from compressor.drawing import PICTURE, draw
from compressor.errors import MachineError
from compressor.evaluation import perplexity
from compressor.memory import trim_heap
from compressor.opening import open_stream, read_texts
from compressor.per_layer import code_of
from compressor.plan import Plan
from compressor.planning import comparison_note
from compressor.progress import Meter
from compressor.quantization.reading import open_model
from compressor.repair import check_repair
from compressor.repair.streaming import Repair
from compressor.report import versions, write_card, write_record
from compressor.settings import Settings, open_lattice
from compressor.shards import publish
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
    work,
    before,
    evaluation,
    meter,
    lines,
    repair,
) -> tuple[dict, dict]:
    """Write one result, verify it and measure it; what to say of it and its compression.json."""
    layout = layout_of(plan, settings.layout, checkpoint.family)
    with meter.stage("write"), lines.stage("repair" if repair else "write") as progress:
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
        "parameters_before": checkpoint.parameters,
        "bytes_before": checkpoint.bytes,
        "perplexity_before": before and before["perplexity"],
        "perplexity_pruned": None,
        "perplexity_after": None,
        "seed": settings.seed,
        "recovery": None,
        "quantization": None,
        "warnings": comparison_note(plan) + (repair.warnings if repair else []),
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
    record["evaluation"] = evaluation and evaluation.protocol
    write_record(folder, record)
    trim_heap()
    if settings.verify:
        with meter.stage("verify"), lines.stage("verify"):
            found = verify(folder, checkpoint.path)
        result["verified"] = f"logits within {found['logits_difference']:.1e}"
    written = Checkpoint(folder)
    result["warnings"] += container_notes(checkpoint, written, layout)
    result["warnings"] += class_notes(checkpoint.path, folder)
    result["parameters_after"], result["bytes_after"] = written.parameters, written.bytes
    with meter.stage("draw"):
        widths = open_lattice(settings, checkpoint)
        try:
            draw(folder / PICTURE, scores, plan, checkpoint, widths)
        except MachineError as missing:
            result["warnings"].append(str(missing))
    result["perplexity_pruned"] = measure(settings, folder, work, evaluation, meter, lines)
    result["perplexity_after"] = result["perplexity_pruned"]
    return result, record


def measure(settings, folder: Path, work: Path, evaluation, meter, lines) -> float | None:
    """Perplexity of the checkpoint in a folder; None without an evaluation text."""
    if evaluation is None:
        return None
    with meter.stage("evaluate"), lines.stage("evaluate"):
        stream = open_stream(settings, open_model(folder), work, evaluation)
        return perplexity(stream, evaluation)["perplexity"]


def judge(settings, folder: Path, result: dict, record: dict, write_card=write_card) -> None:
    """Hold the result against --max-perplexity-ratio; write its record and its card."""
    limit, after = settings.max_perplexity_ratio, result["perplexity_after"]
    measured = after is not None and limit is not None
    if measured and not after / result["perplexity_before"] <= limit:
        result["verified"] = "rejected"
    kept = ("keep_asked", "parameters_before", "parameters_after", "bytes_before", "bytes_after")
    perplexities = ("perplexity_before", "perplexity_pruned", "perplexity_after")
    perplexities += ("perplexity_unquantized",)
    names = (*kept, *perplexities, "verified")
    record |= {name: result[name] for name in names if name in result}
    write_record(folder, record)
    write_card(folder, result, record)


def publish_results(settings, results: list[dict], partial: Path, meter: Meter) -> None:
    """Give the complete folder its name, and say in the results what the job took."""
    final = settings.dest
    if len(results) == 1 and results[0]["verified"] == "rejected":
        final = settings.dest.with_name(settings.dest.name + ".rejected")
        results[0]["dest"] = str(final)
    publish(partial, final)
    for result in results:
        result["seconds"] = dict(meter.seconds)
        result["peak_rss_bytes"] = meter.peak_rss
        cuda = torch.cuda.is_available()
        result["peak_gpu_bytes"] = torch.cuda.max_memory_allocated() if cuda else 0


def apply_plan(settings: Settings, plan: Plan) -> str:
    """The stage `cut`: write a plan's result under DEST, verified; one sentence about it."""
    checkpoint, dest = Checkpoint(settings.source), settings.dest
    check_repair(settings.repair, settings.refine_epochs, checkpoint)
    check_dest(settings)
    calibration, _ = read_texts(settings, checkpoint)
    partial = dest.with_name(dest.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        stream = open_stream(settings, checkpoint, dest.parent, calibration)
        repair = open_repair(settings, stream, plan, calibration)
        changes = repair and repair.blocks()
        layout = layout_of(plan, settings.layout, checkpoint.family)
        container = settings.container
        chosen = write(checkpoint, plan, partial, layout, container, changes=changes)
        write_record(partial, make_record(checkpoint, plan, layout, chosen, repair))
        difference = None
        if settings.verify:
            difference = verify(partial, settings.source)["logits_difference"]
        written = Checkpoint(partial)
        publish(partial, dest)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    proof = "not verified" if difference is None else f"verified, logits within {difference:.1e}"
    found = f"{dest}: {written.parameters:,} of {checkpoint.parameters:,} parameters, {proof}"
    notes = container_notes(checkpoint, written, layout) + class_notes(checkpoint.path, dest)
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
