"""Quantisation as a part of a job: of what a cut left, or of a source as it is."""

import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from compressor.config.packing import W4A16
from compressor.job.job import Job
from compressor.job.opening import open_stream
from compressor.job.proving import proved
from compressor.job.record import base_record
from compressor.job.result import Done, begun, conclude
from compressor.model.loading import prompt_ids
from compressor.model.memory import trim_heap
from compressor.model.saved_blocks import count_blocks
from compressor.model.tensors import INDEX
from compressor.quantization.dense import open_source
from compressor.quantization.reading import PackedCheckpoint
from compressor.quantization.stream import Calibration, Quantizing
from compressor.report.quantized import write_card
from compressor.report.result import Result
from compressor.writing.packed import Packed
from compressor.writing.packing import SCALE
from compressor.writing.record import write_record
from compressor.writing.shards import move_into
from compressor.writing.side_files import left_behind
from compressor.writing.tokenizer_class import class_notes
from compressor.writing.writer import write_folder

# A folder inside the dense one's, so that its files can be renamed into place.
QUANTIZED = "quantized"
STATES = 5  # of every token, that enter and leave a block on two paths, and should leave it


def known_scales(folder: Path, block: int) -> dict[str, torch.Tensor]:
    """A block's scales by the name of their weights, as a pruning has left them in a folder."""
    tensors = load_file(folder / f"{block}.safetensors")
    return {n.removesuffix(SCALE): t for n, t in tensors.items() if n.endswith(SCALE)}


def quantize(job: Job, source: Path, out: Path, stem: Path, done: Done) -> None:
    """Quantise the dense checkpoint in `source` as the new folder `out`, verified and measured.

    stem: the beginning of the names of the files that belong to this result in the work folder; done:
    gets what is to be said.
    """
    run, asked, runtime = job.run, job.config.quantization, job.config.runtime
    result, checkpoint = done.result, open_source(source)
    prompts = [ids[0] for ids in prompt_ids(checkpoint.tokenizer(), checkpoint.positions)]
    learned = known = None
    if done.scales is not None:
        known = partial(known_scales, Path(done.scales))
    elif asked.learns:
        stream = open_stream(runtime, checkpoint, stem.parent, STATES, job.calibration)
        learned = Calibration(stream, job.calibration.sequences, runtime.seed)
    saved = stem.parent / "quantize" / stem.name
    packing = asked.packing
    quantizing = Quantizing(checkpoint, packing, prompts, learned, known, saved)
    shutil.rmtree(out, ignore_errors=True)
    with run.stage("quantize", count_blocks(saved)) as progress:
        write_folder(Packed(checkpoint, packing, quantizing.blocks()), out, progress=progress)
    expected = stem.with_name(stem.name + ".quantized.safetensors")
    save_file({str(i): x for i, x in enumerate(quantizing.logits())}, expected)
    written = PackedCheckpoint(out)
    result.quantization = {
        "scheme": asked.scheme,
        "group": packing.group,
        "clip": "joint" if known else asked.clip if asked.scheme == W4A16 else None,
        "bits_per_weight": written.bits_per_weight,
        "bytes_dense": checkpoint.bytes,
    }
    done.record["quantization"] = result.quantization | {
        "format": packing.known.format,
        "calibration": learned and job.calibration.protocol,
        "blocks": quantizing.record,
    }
    result.parameters_after, result.bytes_after = written.parameters, written.bytes
    del quantizing
    trim_heap()
    write_record(out, done.record)
    if runtime.verify:
        report = proved(run, runtime, out, expected=expected)
        result.proven(f"{packing.known.bits}-bit within {report['logits_difference']:.1e}")
    result.perplexity_unquantized = result.perplexity_after
    result.measure(job.judge.after(out))


def quantize_one(job: Job, folder: Path, stem: Path, done: Done) -> None:
    """Quantise one finished result in its folder's subfolder; nothing where `done` says it is."""
    if done.files is None:
        out = folder / QUANTIZED
        quantize(job, folder, out, stem, done)
        done.files = sorted(file.name for file in out.iterdir())


def adopt(folder: Path, files: list[str]) -> None:
    """Put the quantised files in the place of the dense ones; may be interrupted and done again."""
    out = folder / QUANTIZED
    if out.exists():
        move_into(out, folder)
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        if file.name not in files:
            with suppress(FileNotFoundError):
                file.unlink()


def quantize_source(job: Job) -> Result:
    """`--quantize` without a cut, in the folder of unfinished results."""
    config, checkpoint, folder = job.config, job.checkpoint, job.run.partial
    before = job.judge.before()
    dense = before["perplexity"] if before else None
    result = begun(
        checkpoint,
        config.dest,
        config.runtime.seed,
        perplexity_before=dense,
        perplexity_pruned=dense,
        perplexity_after=dense,
        warnings=[*job.notes, *left_behind(checkpoint)],
    )
    evaluation = job.evaluation and job.evaluation.protocol
    done = Done(result, base_record(checkpoint) | {"evaluation": evaluation})
    quantize(job, checkpoint.path, folder, job.run.work / "source", done)
    result.warnings += class_notes(checkpoint.path, folder)
    conclude(config.runtime.max_perplexity_ratio, folder, done, write_card)
    return result
