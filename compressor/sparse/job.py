"""`compress --granularity weight`: prune, write, verify, measure, judge, publish."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from compressor import __version__
from compressor.checkpoint import Checkpoint
from compressor.evaluation import perplexity
from compressor.memory import trim_heap
from compressor.opening import open_stream, position_notes, read_texts
from compressor.plan import Plan
from compressor.quantization import job as quantization
from compressor.quantization.report import write_card as write_quantized_card
from compressor.report import versions, write_record
from compressor.result import judge, measure, publish_results
from compressor.settings import decisive
from compressor.sparse.report import ZEROS_ALONE, shares, write_card, zeros_before
from compressor.sparse.stream import Sparsification
from compressor.tokenizer_class import class_notes
from compressor.verify import TOLERANCE, prompt_ids, verify
from compressor.writing import write

# Of logits that were computed in a dtype, against float32's: what its roundings add up to is less, and
# what a wrong tensor does is more.
TOLERANCES = {torch.float32: TOLERANCE, torch.float16: 0.05, torch.bfloat16: 0.3}


def run(settings, checkpoint: Checkpoint, partial: Path, work: Path, journal, meter, lines) -> list:
    """The job after its checks: one result, published."""
    calibration, evaluation = read_texts(settings, checkpoint)
    journal.agree("settings", decisive(settings, checkpoint, calibration, evaluation))
    stream = open_stream(settings, checkpoint, work, calibration, evaluation)
    lines.texts(calibration=calibration, evaluation=evaluation)
    before = journal.get("before")
    if evaluation is not None and before is None:
        with meter.stage("evaluate"), lines.stage("evaluate"):
            before = perplexity(stream, evaluation)
        journal.put("before", before)
    pruning = open_pruning(settings, checkpoint, stream, calibration, work)
    journal.put("pruning", True)
    shutil.rmtree(partial, ignore_errors=True)
    with meter.stage("write"), lines.stage("prune") as progress:
        changes = meter.timed("prune", pruning.blocks())
        write(checkpoint, whole(checkpoint), partial, progress=progress, changes=changes)
    record = make_record(checkpoint, pruning, calibration, evaluation)
    write_record(partial, record)
    expected = work / "expected.safetensors"
    logits = {str(i): x.float().cpu() for i, x in enumerate(pruning.logits())}
    save_file(logits | {"tolerance": torch.tensor(TOLERANCES[stream.dtype])}, expected)
    joint = pruning.recipe.group is not None
    del pruning
    trim_heap()
    written, sparsity = Checkpoint(partial), record["sparsity"]
    result = {
        "source": str(checkpoint.path),
        "dest": str(settings.dest),
        "granularity": "weight",
        "method": settings.method,
        "update": sparsity["recipe"]["update"],
        "sparsity_asked": sparsity["asked"],
        "sparsity_reached": sparsity["reached"],
        "zeros": sparsity["zeros"],
        "projections": shares(sparsity),
        "model_type": checkpoint.family.model_type,
        "container": written.family.model_type,
        "parameters_before": checkpoint.parameters,
        "parameters_after": written.parameters,
        "bytes_before": checkpoint.bytes,
        "bytes_after": written.bytes,
        "perplexity_before": before and before["perplexity"],
        "perplexity_after": None,
        "seed": settings.seed,
        "warnings": [
            ZEROS_ALONE,
            *zeros_before(sparsity),
            *position_notes(settings, checkpoint, calibration, evaluation),
            *class_notes(checkpoint.path, partial),
        ],
        "verified": "no",
    }
    if settings.verify:
        with meter.stage("verify"), lines.stage("verify"):
            found = verify(partial, expected=expected)
        result["verified"] = (
            f"{found['zeros']:,} zeros, logits within {found['logits_difference']:.1e}"
        )
    result["perplexity_after"] = measure(settings, partial, work, evaluation, meter, lines)
    card = write_card
    if settings.quantization.wanted:
        done = {"result": result, "record": record}
        if joint:
            done["scales"] = str(work / "blocks")
        quantization.quantize_one(
            settings,
            partial,
            work / "sparse",
            done,
            calibration,
            lambda written: measure(settings, written, work, evaluation, meter, lines),
            meter,
            lines,
        )
        quantization.adopt(partial, done["files"])
        card = write_quantized_card
    judge(settings, partial, result, record, card)
    publish_results(settings, [result], partial, meter)
    return [result]


def open_pruning(settings, checkpoint, stream, calibration, work: Path) -> Sparsification:
    """BESA's finished blocks are kept in the work folder: to learn them again takes long."""
    recipe = settings.weights.recipe(settings.method, settings.seed)
    if recipe.learns and recipe.update == "none" and settings.quantization.learns:
        recipe = replace(recipe, group=settings.quantization.group)
    prompts = [ids[0] for ids in prompt_ids(checkpoint.tokenizer(), checkpoint.positions)]
    saved = work / "blocks" if recipe.learns else None
    sequences = calibration.sequences if calibration else []
    return Sparsification(stream, sequences, recipe, prompts, saved)


def whole(checkpoint: Checkpoint) -> Plan:
    """The plan that keeps every unit."""
    kept = {group: list(range(units)) for group, units in checkpoint.units.items()}
    return Plan([kept] * checkpoint.blocks)


def make_record(checkpoint: Checkpoint, pruning: Sparsification, calibration, evaluation) -> dict:
    """What compression.json holds of the result."""
    recipe, blocks = pruning.recipe, pruning.record
    weights = {n: checkpoint.tensors[checkpoint.block_name(0, n)].numel for n in blocks[0]["zeros"]}
    zeros = sum(sum(block["zeros"].values()) for block in blocks)
    return {
        "format": 1,
        "compressor": __version__,
        "source": {"name": checkpoint.path.name, "fingerprint": checkpoint.fingerprint},
        "sparsity": {
            "recipe": {k: v for k, v in asdict(recipe).items() if k != "besa" or recipe.learns},
            "corrects": recipe.corrects,
            "dtype": str(pruning.stream.dtype).removeprefix("torch."),
            "calibration": calibration and calibration.protocol,
            "asked": recipe.sparsity,
            "reached": zeros / (checkpoint.blocks * sum(weights.values())),
            "zeros": zeros,
            "weights": weights,
            "blocks": blocks,
        },
        "evaluation": evaluation and evaluation.protocol,
        "versions": versions(),
    }
