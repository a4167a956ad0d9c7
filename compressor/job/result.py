"""One result of a job: cut, repaired, written, verified, measured, judged."""

from dataclasses import asdict
from pathlib import Path

import torch

from compressor import __version__
from compressor.errors import MachineError
from compressor.job.forecast import Forecast
from compressor.job.judging import Judge, said_of
from compressor.job.planning import comparison_note
from compressor.job.progress import Meter
from compressor.job.widths import open_alignment, open_reach, wanted_widths
from compressor.model.checkpoint import Checkpoint
from compressor.model.memory import trim_heap
from compressor.model.per_layer import code_of
from compressor.model.saved_blocks import count_blocks
from compressor.model.stream import BlockStream
from compressor.planning.costs import Costs
from compressor.planning.plan import Plan
from compressor.planning.reach import outside_note
from compressor.planning.told import width_notes
from compressor.repair.streaming import Repair
from compressor.report.card import write_card
from compressor.report.drawing import PICTURE, draw
from compressor.text.tokens import TokenSet
from compressor.verification.verify import verify
from compressor.writing.containers import container_notes
from compressor.writing.layouts import layout_of
from compressor.writing.record import versions, write_record
from compressor.writing.shards import publish
from compressor.writing.side_files import left_behind
from compressor.writing.tokenizer_class import class_notes
from compressor.writing.write import write


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
