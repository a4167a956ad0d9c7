"""Quantisation as a part of a job: of what a cut left, or of a source as it is."""

import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from compressor.job.forecast import forecast
from compressor.job.judging import Judge, said_of
from compressor.job.opening import open_stream
from compressor.job.progress import Lines, Meter
from compressor.job.reading import read_texts, reading_notes, tell_texts
from compressor.job.result import base_record, conclude, publish_results
from compressor.job.settings import Settings, decisive
from compressor.model.checkpoint import Checkpoint
from compressor.model.loading import prompt_ids
from compressor.model.memory import trim_heap
from compressor.model.saved_blocks import count_blocks
from compressor.model.tensors import INDEX
from compressor.quantization.reading import PackedCheckpoint
from compressor.quantization.stream import Calibration, Quantizing
from compressor.report.quantized import write_card
from compressor.text.tokens import TokenSet
from compressor.verification.verify import verify
from compressor.writing.packed import write_quantized
from compressor.writing.packing import FORMAT, SCALE
from compressor.writing.record import write_record
from compressor.writing.shards import move_into
from compressor.writing.side_files import left_behind
from compressor.writing.tokenizer_class import class_notes

QUANTIZED = (
    "quantized"  # a folder inside the dense one's, so that its files can be renamed into place
)


def known_scales(folder: Path, block: int) -> dict[str, torch.Tensor]:
    """A block's scales by the name of their weights, as a pruning has left them in a folder."""
    tensors = load_file(folder / f"{block}.safetensors")
    return {n.removesuffix(SCALE): t for n, t in tensors.items() if n.endswith(SCALE)}


def quantize(
    settings: Settings,
    source: Path,
    out: Path,
    stem: Path,
    done: dict,
    calibration: TokenSet | None,
    judge: Judge,
    meter: Meter,
    lines: Lines,
) -> None:
    """Quantise the dense checkpoint in `source` as the new folder `out`, verified and measured.

    stem: the beginning of the names of the files that belong to this result in the work folder.
    done: its `result` and `record`, which get what is to be said; and `scales`, where a pruning has
    found them already, the folder of the scales of every block.
    """
    result, record = done["result"], done["record"]
    checkpoint, group = Checkpoint(source), settings.quantization.group
    prompts = [ids[0] for ids in prompt_ids(checkpoint.tokenizer(), checkpoint.positions)]
    learned = known = None
    if "scales" in done:
        known = partial(known_scales, Path(done["scales"]))
    elif settings.quantization.learns:
        stream = open_stream(settings, checkpoint, stem.parent, calibration)
        learned = Calibration(stream, calibration.sequences, settings.seed)
    saved = stem.parent / "quantize" / stem.name
    quantizing = Quantizing(checkpoint, group, prompts, learned, known, saved)
    shutil.rmtree(out, ignore_errors=True)
    with meter.stage("quantize"), lines.stage("quantize", count_blocks(saved)) as progress:
        write_quantized(checkpoint, group, quantizing.blocks(), out, progress=progress)
    expected = stem.with_name(stem.name + ".quantized.safetensors")
    save_file({str(i): x for i, x in enumerate(quantizing.logits())}, expected)
    written = PackedCheckpoint(out)
    found = {
        "scheme": settings.quantization.scheme,
        "group": group,
        "clip": "joint" if known else settings.quantization.clip,
        "bits_per_weight": written.bits_per_weight,
        "bytes_dense": checkpoint.bytes,
    }
    record["quantization"] = found | {
        "format": FORMAT,
        "calibration": learned and calibration.protocol,
        "blocks": quantizing.record,
    }
    result["quantization"] = found
    result["parameters_after"], result["bytes_after"] = written.parameters, written.bytes
    del quantizing
    trim_heap()
    write_record(out, record)
    if settings.verify:
        with meter.stage("verify"), lines.stage("verify") as progress:
            report = verify(out, expected=expected, progress=progress)
        proof = f"4-bit within {report['logits_difference']:.1e}"
        known = [v for v in (result["verified"],) if v != "no"]
        result["verified"] = ", ".join([*known, proof])
    result["perplexity_unquantized"] = result["perplexity_after"]
    result |= said_of(judge.after(out))


def quantize_one(
    settings: Settings,
    folder: Path,
    stem: Path,
    done: dict,
    calibration: TokenSet | None,
    judge: Judge,
    meter: Meter,
    lines: Lines,
) -> None:
    """Quantise one finished result in its folder's subfolder; nothing where `done` says it is."""
    if "files" not in done:
        out = folder / QUANTIZED
        quantize(settings, folder, out, stem, done, calibration, judge, meter, lines)
        done["files"] = sorted(file.name for file in out.iterdir())


def adopt(folder: Path, files: list[str]) -> None:
    """Put the quantised files in the place of the dense ones; may be interrupted and done again."""
    out = folder / QUANTIZED
    if out.exists():
        move_into(out, folder)
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        if file.name not in files:
            with suppress(FileNotFoundError):
                file.unlink()


def run(settings, checkpoint: Checkpoint, partial: Path, work: Path, journal, meter, lines) -> list:
    """`--quantize` without a cut: one result, published."""
    texts = read_texts(settings, checkpoint)
    calibration, evaluation = texts.calibration, texts.evaluation
    journal.agree("settings", decisive(settings, checkpoint, calibration, evaluation))
    tell_texts(lines, settings, checkpoint, calibration=calibration, evaluation=evaluation)
    stream = open_stream(settings, checkpoint, work, evaluation)
    foreseen = forecast(settings, checkpoint, stream, texts)
    lines.forecast(foreseen)
    judge = Judge(settings, stream, evaluation, work, meter, lines)
    before = judge.before(journal)
    dense = before and before["perplexity"]
    result = {
        "source": str(checkpoint.path),
        "dest": str(settings.dest),
        "method": "none",
        "mode": None,
        "allocate": "none",
        "held_back": None,
        "repair": "none",
        "layout": "uniform",
        "container": checkpoint.family.model_type,
        "model_type": checkpoint.family.model_type,
        "asked": None,
        "keep_asked": None,
        "keep_reached": 1.0,
        "keep_blocks_reached": 1.0,
        "parameters_before": checkpoint.parameters,
        "bytes_before": checkpoint.bytes,
        "perplexity_before": dense,
        "perplexity_pruned": dense,
        "perplexity_after": dense,
        "seed": settings.seed,
        "recovery": None,
        "warnings": [
            *reading_notes(settings, checkpoint, calibration, evaluation),
            *texts.notes,
            *left_behind(checkpoint),
        ],
        "verified": "no",
    }
    record = base_record(checkpoint) | {"evaluation": evaluation and evaluation.protocol}
    source, stem = checkpoint.path, work / "source"
    done = {"result": result, "record": record}
    quantize(settings, source, partial, stem, done, calibration, judge, meter, lines)
    result["warnings"] += class_notes(checkpoint.path, partial)
    conclude(settings, partial, result, record, write_card)
    publish_results(settings, [result], partial, meter, foreseen)
    return [result]
