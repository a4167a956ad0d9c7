"""`compress --granularity weight`: prune, write, verify, measure, judge, publish."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from compressor import __version__
from compressor.job import quantize as quantization
from compressor.job.forecast import forecast
from compressor.job.judging import Judge, said_of
from compressor.job.opening import open_stream
from compressor.job.reading import read_texts, reading_notes, tell_texts
from compressor.job.result import conclude, publish_results
from compressor.job.settings import decisive
from compressor.model.checkpoint import Checkpoint
from compressor.model.loading import prompt_ids
from compressor.model.memory import trim_heap
from compressor.model.saved_blocks import count_blocks
from compressor.planning.plan import Plan
from compressor.report.quantized import write_card as write_quantized_card
from compressor.report.sparse import ZEROS_ALONE, shares, write_card, zeros_before
from compressor.sparse.stream import Sparsification
from compressor.verification.child import TOLERANCE
from compressor.verification.verify import verify
from compressor.writing.record import versions, write_record
from compressor.writing.side_files import left_behind
from compressor.writing.tokenizer_class import class_notes
from compressor.writing.write import write

# Of logits that were computed in a dtype, against float32's: what its roundings add up to is less, and
# what a wrong tensor does is more.
TOLERANCES = {torch.float32: TOLERANCE, torch.float16: 0.05, torch.bfloat16: 0.3}


def run(settings, checkpoint: Checkpoint, partial: Path, work: Path, journal, meter, lines) -> list:
    """The job after its checks: one result, published."""
    texts = read_texts(settings, checkpoint)
    calibration, evaluation = texts.calibration, texts.evaluation
    journal.agree("settings", decisive(settings, checkpoint, calibration, evaluation))
    stream = open_stream(settings, checkpoint, work, calibration, evaluation)
    tell_texts(lines, settings, checkpoint, calibration=calibration, evaluation=evaluation)
    foreseen = forecast(settings, checkpoint, stream, texts)
    lines.forecast(foreseen)
    judge = Judge(settings, stream, evaluation, work, meter, lines)
    before = judge.before(journal)
    pruning = open_pruning(settings, checkpoint, stream, calibration, work)
    shutil.rmtree(partial, ignore_errors=True)
    kept = count_blocks(pruning.saved)
    with meter.stage("write"), lines.stage("prune", kept) as progress:
        changes = meter.timed("prune", pruning.blocks())
        write(checkpoint, whole(checkpoint), partial, progress=progress, changes=changes)
    record = make_record(checkpoint, pruning, calibration, evaluation)
    write_record(partial, record)
    expected = work / "expected.safetensors"
    logits = {str(i): x.float().cpu() for i, x in enumerate(pruning.logits())}
    save_file(logits | {"tolerance": torch.tensor(TOLERANCES[stream.dtype])}, expected)
    joint = pruning.recipe.group is not None
    dense = partial
    if joint:  # the folder of results holds what 4 bits leave already
        dense = work / "unrounded"
        shutil.rmtree(dense, ignore_errors=True)
        write(checkpoint, whole(checkpoint), dense, changes=pruning.unrounded())
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
        **said_of(None),
        "seed": settings.seed,
        "warnings": [
            ZEROS_ALONE,
            *zeros_before(sparsity),
            *reading_notes(settings, checkpoint, calibration, evaluation),
            *texts.notes,
            *left_behind(checkpoint),
            *class_notes(checkpoint.path, partial),
        ],
        "verified": "no",
    }
    if settings.verify:
        with meter.stage("verify"), lines.stage("verify") as progress:
            found = verify(partial, expected=expected, progress=progress)
        result["verified"] = (
            f"{found['zeros']:,} zeros, logits within {found['logits_difference']:.1e}"
        )
    result |= said_of(judge.after(dense))
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
            judge,
            meter,
            lines,
        )
        quantization.adopt(partial, done["files"])
        card = write_quantized_card
    conclude(settings, partial, result, record, card)
    publish_results(settings, [result], partial, meter, foreseen)
    return [result]


def open_pruning(settings, checkpoint, stream, calibration, work: Path) -> Sparsification:
    """The pruning that was asked for; its finished blocks are kept in the work folder."""
    recipe = settings.weights.recipe(settings.method, settings.seed)
    if recipe.learns and recipe.update == "none" and settings.quantization.learns:
        recipe = replace(recipe, group=settings.quantization.group)
    prompts = [ids[0] for ids in prompt_ids(checkpoint.tokenizer(), checkpoint.positions)]
    sequences = calibration.sequences if calibration else []
    return Sparsification(stream, sequences, recipe, prompts, work / "blocks")


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
