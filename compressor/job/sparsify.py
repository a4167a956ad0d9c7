"""`compressor sparsify`: zero, write, verify, measure, judge."""

import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from compressor.config.sparse import Recipe
from compressor.job import quantize
from compressor.job.job import Job
from compressor.job.proving import proved
from compressor.job.record import base_record
from compressor.job.result import Done, begun, conclude
from compressor.job.sharing import together
from compressor.model.checkpoint import Checkpoint
from compressor.model.loading import prompt_ids
from compressor.model.memory import trim_heap
from compressor.model.saved_blocks import count_blocks
from compressor.model.stream import BlockStream
from compressor.planning.plan import Plan
from compressor.report.quantized import write_card as write_quantized_card
from compressor.report.result import Result
from compressor.report.sparse import ZEROS_ALONE, shares, write_card, zeros_before
from compressor.sparse.stream import Sparsification
from compressor.text.tokens import TokenSet
from compressor.verification.child import TOLERANCE
from compressor.writing.cuts import write
from compressor.writing.record import write_record
from compressor.writing.side_files import left_behind
from compressor.writing.tokenizer_class import class_notes

# Of logits that were computed in a dtype, against float32's: what its roundings add up to is less, and
# what a wrong tensor does is more.
TOLERANCES = {torch.float32: TOLERANCE, torch.float16: 0.05, torch.bfloat16: 0.3}


def zero_weights(job: Job) -> Result:
    """The one result of the job, in the folder of unfinished ones."""
    config, checkpoint, run = job.config, job.checkpoint, job.run
    before = job.judge.before()
    pruning = open_pruning(job)
    shutil.rmtree(run.partial, ignore_errors=True)
    with run.stage("write", count_blocks(pruning.saved), "prune") as progress:
        changes = run.meter.timed("prune", pruning.blocks())
        write(checkpoint, Plan.whole(checkpoint), run.partial, progress=progress, changes=changes)
    record = make_record(job, pruning)
    write_record(run.partial, record)
    expected = run.work / "expected.safetensors"
    logits = {str(i): x.float().cpu() for i, x in enumerate(pruning.logits())}
    save_file(logits | {"tolerance": torch.tensor(TOLERANCES[pruning.stream.dtype])}, expected)
    joint = pruning.recipe.group is not None
    dense = unrounded(job, pruning) if joint else run.partial
    del pruning
    trim_heap()
    result = described(job, record)
    result.perplexity_before = before["perplexity"] if before else None
    if config.runtime.verify:
        report = proved(run, config.runtime, run.partial, expected=expected)
        difference = report["logits_difference"]
        result.proven(f"{report['zeros']:,} zeros, logits within {difference:.1e}")
    result.measure(job.judge.after(dense))
    done = Done(result, record, scales=str(run.work / "blocks") if joint else None)
    card = write_card
    if config.quantization.wanted:
        quantize.quantize_one(job, run.partial, run.work / "sparse", done)
        quantize.adopt(run.partial, done.files)
        card = write_quantized_card
    conclude(config.runtime.max_perplexity_ratio, run.partial, done, card)
    return result


def unrounded(job: Job, pruning: Sparsification) -> Path:
    """The dense checkpoint before 4 bits; the folder of results holds what they leave already."""
    dense = job.run.work / "unrounded"
    shutil.rmtree(dense, ignore_errors=True)
    write(job.checkpoint, Plan.whole(job.checkpoint), dense, changes=pruning.unrounded())
    return dense


def open_pruning(job: Job) -> Sparsification:
    """The pruning that was asked for; its finished blocks are kept in the work folder."""
    config, checkpoint = job.config, job.checkpoint
    recipe = config.sparse.recipe(config.runtime.seed)
    if recipe.learns and recipe.update == "none" and config.quantization.learns:
        recipe = replace(recipe, group=config.quantization.group)
    prompts = [ids[0] for ids in prompt_ids(checkpoint.tokenizer(), checkpoint.positions)]
    stream, text = job.stream, job.calibration
    if text is not None and recipe.group is None:
        stream = together(job.run, stream, text, partial(prune, recipe))
    sequences = text.sequences if text else []
    return Sparsification(stream, sequences, recipe, prompts, job.run.work / "blocks")


def prune(recipe: Recipe, stream: BlockStream, text: TokenSet) -> None:
    """The pruning in another rank than that which writes."""
    for _ in Sparsification(stream, text.sequences, recipe).blocks():
        pass


def described(job: Job, record: dict) -> Result:
    """What is known of the result before it is measured."""
    checkpoint, sparsity = job.checkpoint, record["sparsity"]
    written = Checkpoint(job.run.partial)
    return begun(
        checkpoint,
        job.config.dest,
        job.config.runtime.seed,
        container=written.family.model_type,
        parameters_after=written.parameters,
        bytes_after=written.bytes,
        granularity="weight",
        method=job.config.sparse.method,
        update=sparsity["recipe"]["update"],
        sparsity_asked=sparsity["asked"],
        sparsity_reached=sparsity["reached"],
        zeros=sparsity["zeros"],
        projections=shares(sparsity),
        warnings=[
            ZEROS_ALONE,
            *zeros_before(sparsity),
            *job.notes,
            *left_behind(checkpoint),
            *class_notes(checkpoint.path, job.run.partial),
        ],
    )


def make_record(job: Job, pruning: Sparsification) -> dict:
    """What compression.json holds of the result."""
    checkpoint, recipe, blocks = job.checkpoint, pruning.recipe, pruning.record
    weights = {n: checkpoint.tensors[checkpoint.block_name(0, n)].numel for n in blocks[0]["zeros"]}
    zeros = sum(sum(block["zeros"].values()) for block in blocks)
    return base_record(checkpoint) | {
        "sparsity": {
            "recipe": {k: v for k, v in asdict(recipe).items() if k != "besa" or recipe.learns},
            "corrects": recipe.corrects,
            "dtype": str(pruning.stream.dtype).removeprefix("torch."),
            "calibration": job.calibration and job.calibration.protocol,
            "asked": recipe.sparsity,
            "reached": zeros / (checkpoint.blocks * sum(weights.values())),
            "zeros": zeros,
            "weights": weights,
            "blocks": blocks,
        },
        "evaluation": job.evaluation and job.evaluation.protocol,
    }
