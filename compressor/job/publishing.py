"""A finished result gets its name, and from there on the job is over."""

from pathlib import Path

from compressor.config.runtime import Runtime
from compressor.job.interruption import ending
from compressor.model.source import Source
from compressor.writing.shards import flush, flush_one, publish


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
