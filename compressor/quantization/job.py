"""Quantisation as a part of a job: of what a cut left, or of a source as it is."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save_file

from compressor.calibration import describe
from compressor.checkpoint import INDEX, Checkpoint
from compressor.memory import trim_heap
from compressor.opening import position_notes, read_texts
from compressor.quantization.reading import PackedCheckpoint
from compressor.quantization.report import write_card
from compressor.quantization.stream import Quantizing
from compressor.quantization.writing import write_quantized
from compressor.report import Lines, Meter, write_record
from compressor.result import base_record, judge, measure, publish_results
from compressor.settings import Settings, decisive
from compressor.verify import PROMPTS, verify

QUANTIZED = (
    "quantized"  # a folder inside the dense one's, so that its files can be renamed into place
)


def quantize(
    settings: Settings,
    source: Path,
    out: Path,
    stem: Path,
    result: dict,
    record: dict,
    measure: Callable[[Path], float | None],
    meter: Meter,
    lines: Lines,
) -> None:
    """Quantise the dense checkpoint in `source` as the new folder `out`, verified and measured.

    stem: the beginning of the names of the files that belong to this result in the work folder.
    measure: the evaluation text's perplexity of a folder, None without such a text. `result` and
    `record` get what is to be said of it.
    """
    checkpoint, group = Checkpoint(source), settings.quantization.group
    tokenizer = checkpoint.tokenizer()
    prompts = [tokenizer(p, return_tensors="pt")["input_ids"][0] for p in PROMPTS]
    quantizing = Quantizing(checkpoint, group, prompts)
    shutil.rmtree(out, ignore_errors=True)
    with meter.stage("quantize"), lines.stage("quantize") as progress:
        write_quantized(quantizing, out, progress=progress)
    expected = stem.with_name(stem.name + ".quantized.safetensors")
    save_file({str(i): x for i, x in enumerate(quantizing.logits())}, expected)
    written = PackedCheckpoint(out)
    found = {
        "scheme": settings.quantization.scheme,
        "group": group,
        "bits_per_weight": written.bits_per_weight,
        "bytes_dense": checkpoint.bytes,
    }
    record["quantization"] = found | {"format": "pack-quantized", "blocks": quantizing.record}
    result["quantization"] = found
    result["parameters_after"], result["bytes_after"] = written.parameters, written.bytes
    del quantizing
    trim_heap()
    write_record(out, record)
    if settings.verify:
        with meter.stage("verify"), lines.stage("verify"):
            report = verify(out, expected=expected)
        proof = f"4-bit within {report['logits_difference']:.1e}"
        known = [v for v in (result["verified"],) if v != "no"]
        result["verified"] = ", ".join([*known, proof])
    result["perplexity_unquantized"] = result["perplexity_after"]
    result["perplexity_after"] = measure(out)


def quantize_one(
    settings: Settings,
    folder: Path,
    stem: Path,
    done: dict,
    measure: Callable[[Path], float | None],
    meter: Meter,
    lines: Lines,
) -> None:
    """Quantise one finished result in its folder's subfolder; nothing where `done` says it is."""
    if "files" not in done:
        out = folder / QUANTIZED
        result, record = done["result"], done["record"]
        quantize(settings, folder, out, stem, result, record, measure, meter, lines)
        done["files"] = sorted(file.name for file in out.iterdir())


def adopt(folder: Path, files: list[str]) -> None:
    """Put the quantised files in the place of the dense ones; may be interrupted and done again."""
    out = folder / QUANTIZED
    if out.exists():
        for file in out.iterdir():
            file.replace(folder / file.name)
        out.rmdir()
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        if file.name not in files:
            with suppress(FileNotFoundError):
                file.unlink()


def run(settings, checkpoint: Checkpoint, partial: Path, work: Path, journal, meter, lines) -> list:
    """`--quantize` without a cut: one result, published."""
    _, evaluation = read_texts(settings, checkpoint)
    journal.agree("settings", decisive(settings, checkpoint, evaluation))
    if evaluation is not None:
        lines.console.print(f"{'evaluation':<12} {describe(evaluation.protocol)}", highlight=False)

    def perplexity_of(folder: Path) -> float | None:
        return measure(settings, folder, work, evaluation, meter, lines)

    before = perplexity_of(checkpoint.path)
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
        "keep_asked": None,
        "keep_reached": 1.0,
        "keep_blocks_reached": 1.0,
        "parameters_before": checkpoint.parameters,
        "bytes_before": checkpoint.bytes,
        "perplexity_before": before,
        "perplexity_pruned": before,
        "perplexity_after": before,
        "seed": settings.seed,
        "recovery": None,
        "warnings": position_notes(settings, checkpoint, evaluation),
        "verified": "no",
    }
    record = base_record(checkpoint) | {"evaluation": evaluation and evaluation.protocol}
    source, stem = checkpoint.path, work / "source"
    quantize(settings, source, partial, stem, result, record, perplexity_of, meter, lines)
    judge(settings, partial, result, record, write_card)
    publish_results(settings, [result], partial, meter)
    return [result]
