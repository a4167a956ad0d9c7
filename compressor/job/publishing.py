"""A finished result gets its name, and from there on the job is over."""

from collections.abc import Sequence
from pathlib import Path

import torch

from compressor.analysis.inspection import inspect
from compressor.config.runtime import Runtime
from compressor.job.continuing import continued
from compressor.job.interruption import ending
from compressor.job.job import Job
from compressor.job.opening import chosen_device
from compressor.model.source import Source
from compressor.report.page import write_page
from compressor.report.result import Result
from compressor.writing.record import read_record, without_places, write_record
from compressor.writing.shards import flush, flush_one, publish


def publish_results(job: Job, results: Sequence[Result], asked: dict) -> None:
    """Give the complete folder its name, and say in the results what the job took, and was to.

    asked: what `told_of` says of its config.
    """
    final = job.config.dest
    folders = [job.run.partial / Path(r.dest).name for r in results if len(results) > 1]
    if len(results) == 1 and results[0].rejected:
        final = final.with_name(final.name + ".rejected")
        results[0].dest = str(final)
    device = chosen_device(job.config.runtime.device)
    folders = folders or [job.run.partial]
    samples, why = continued(job, folders)
    for result, folder, some in zip(results, folders, samples, strict=True):
        result.samples, result.no_samples = some, why
        result.seconds = dict(job.run.meter.seconds)
        result.peak_rss_bytes = job.run.meter.peak_rss
        result.forecast = job.foreseen.told
        result.peak_gpu_bytes = gpu_peak(device)
        report(folder, result, asked, job.run.ranks.world)
    changed = publish_result(job.run.partial, final, job.config.runtime, job.checkpoint)
    for result in results:
        result.warnings += changed


def report(folder: Path, result: Result, asked: dict, ranks: int) -> None:
    """What the job was asked for and took, in a result's record, and all of that as a page."""
    took = ("seconds", "peak_rss_bytes", "peak_gpu_bytes", "warnings", "samples", "no_samples")
    run = {"command": asked["command"], "ranks": ranks}
    run |= {name: getattr(result, name) for name in took}
    record = read_record(folder) | {"settings": asked["settings"], "run": run}
    record = write_record(folder, record)
    loads = without_places(inspect(folder)["loads"])
    result.loads = [engine["target"] for engine in loads if engine["loads"]]
    write_page(folder, record, loads)


def gpu_peak(device: str) -> int:
    """The most bytes that torch has held on a GPU; 0 of a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0


def publish_result(
    folder: Path, final: Path, runtime: Runtime, source: Source | None = None
) -> list[str]:
    """Give a complete folder its name; what stood there goes with --overwrite alone. Sentences on what
    has happened to the source meanwhile.

    Signals change nothing any more: they would have it said that the job was interrupted, which is done.
    """
    change = source and source.whole.change()
    flush(folder)
    ending()
    publish(folder, final, runtime.overwrite)
    return [change] if change else []


def publish_file(unfinished: Path, final: Path, source: Source) -> list[str]:
    """The same of a file, which replaces one of its name."""
    change = source.whole.change()
    flush_one(unfinished)
    ending()
    unfinished.replace(final)
    return [change] if change else []
