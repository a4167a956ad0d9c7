"""What a command ends with, below its table: what both models write, and what to do next."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from compressor.config.layouts import NAS
from compressor.report.page import PAGE
from compressor.report.result import Result
from compressor.report.table import name_of

BREAK = "↵"  # in the place of a line's end


def samples(results: Sequence[Result]) -> Table | str:
    """Each beginning with what the source and every result write after it; or why there are none."""
    first = results[0]
    if not first.samples:
        return first.no_samples
    shown = Table.grid(padding=(0, 2, 0, 0))
    shown.add_column(overflow="fold")
    shown.add_column(overflow="fold")
    for number, sample in enumerate(first.samples):
        shown.add_row("beginning", in_a_row(sample["prompt"]))
        shown.add_row("  source", in_a_row(sample["before"]))
        for result in results:
            shown.add_row(f"  {name_of(result)}", in_a_row(result.samples[number]["after"]))
    return shown


def in_a_row(text: str) -> str:
    """Text as one paragraph."""
    return " ".join(text.replace("\n", f" {BREAK} ").split())


def next_steps(results: Sequence[Result]) -> Iterator[str]:
    """Commands for the first result that was not rejected: to read on, to judge it, to serve it."""
    result = next((each for each in results if not each.rejected), None)
    if result is None:
        return
    yield f"Next: read {Path(result.dest) / PAGE}"
    yield f"      compressor eval {result.dest} --tasks piqa --against {result.source}"
    if any(engine.startswith("vLLM") for engine in result.loads):
        code = " --trust-remote-code" if result.layout == NAS else ""
        yield f"      vllm serve {result.dest}{code}"
