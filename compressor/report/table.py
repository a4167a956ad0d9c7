"""The final table, and the warnings below it."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from rich.table import Table

from compressor.config.amounts import in_runs
from compressor.report.result import Result


def equal_runs(rows: list[dict]) -> Iterator[tuple[str, dict]]:
    """Rows one after the other that differ in `block` alone, as one: `0-21, each`, and the first."""
    for _, run in groupby(rows, key=lambda row: row | {"block": None}):
        first, *others = run
        name = str(first["block"])
        yield (f"{name}-{others[-1]['block']}, each" if others else name), first


def comparison(result: Result) -> str:
    """The allocations that a result was compared with, a line each; the one taken has a star."""
    held_back = result.held_back or {"rows": []}
    return "\n".join(
        f"{row['allocation']} ({row['attention']} x {row['ffn']}) {row['loss']:.4f}"
        + " *" * (row["allocation"] == held_back["taken"])
        for row in held_back["rows"]
    )


def asked(result: Result, kind: str) -> str:
    """` (asked 0.7)` if the result's target was this quantity of the model, else nothing."""
    target = result.asked
    if target is None or (target["kind"], target["budget"]) != (kind, "params"):
        return ""
    late = " before quantisation" if kind == "bytes" and result.quantization else ""
    return f" (asked {target['value']:{'g' if 'keep' in kind else ',.0f'}}{late})"


def share_of(target: dict | None) -> str | None:
    """The name of what a budget other than parameters bounds; None without one."""
    if target is None or target["budget"] == "params":
        return None
    counted = "flops" if target["budget"] == "flops" else "costs"
    return f"share of {counted}" + ", blocks only" * (target["kind"] == "keep-blocks")


def share_reached(result: Result, name: str) -> str:
    """The share of a budget in the result that has this one, and what was asked."""
    if share_of(result.asked) != name:
        return ""
    return f"{result.budget_reached:.4f} (asked {result.asked['value']:g})"


def table(results: Sequence[Result]) -> Table:
    """The final table: a row a measure, a column a result."""
    first = results[0]
    how = f"({first.method}, {first.mode})" if first.mode else ""
    shown = Table(title=f"{first.source}  {how}")
    shown.add_column("")
    shown.add_column("before", justify="right")
    for result in results:
        shown.add_column(f"after ({Path(result.dest).name})", justify="right")

    def row(name: str, before: str, after) -> None:
        shown.add_row(name, before, *(after(r) for r in results))

    row("keep", "", lambda r: f"{r.keep_reached:.4f}{asked(r, 'keep')}")
    kept = "keep_blocks_reached"
    row("keep, blocks only", "", lambda r: f"{getattr(r, kept):.4f}{asked(r, 'keep-blocks')}")
    if any(r.dropped_blocks for r in results):
        row("dropped blocks", "", lambda r: in_runs(r.dropped_blocks or []) or "none")
    if first.hidden_size:
        row("hidden size", "", lambda r: f"{r.hidden_size:,}")
    for name in dict.fromkeys(share_of(r.asked) for r in results):
        if name is not None:
            row(name, "", partial(share_reached, name=name))
    for kind, name in (("params", "parameters"), ("bytes", "bytes")):
        before = f"{getattr(first, f'{name}_before'):,}"
        row(name, before, lambda r, k=kind, n=name: f"{getattr(r, f'{n}_after'):,}{asked(r, k)}")
    if first.quantization:
        row("bits a projection weight", "", lambda r: f"{r.quantization['bits_per_weight']:.3f}")
    if any(r.held_back for r in results):
        row("held-back loss", "", comparison)
    row("type", first.model_type, lambda r: f"{r.container} ({r.layout})")
    if first.perplexity_before is not None:
        before = f"{first.perplexity_before:.4f}"
        row("perplexity", before, lambda r: f"{r.perplexity_after:.4f}")
        if any(r.perplexity_pruned != r.perplexity_after for r in results) and (
            any(r.recovery for r in results)
        ):
            row("perplexity before recovery", "", lambda r: f"{r.perplexity_pruned:.4f}")
        row("KL to the source, nats a token", "", lambda r: f"{r.kl:.4f}")
        row("same likeliest token", "", lambda r: f"{r.agreement:.1%}")
        if first.quantization:
            row("perplexity, not quantised", "", lambda r: f"{r.perplexity_unquantized:.4f}")
    row("verified", "", lambda r: r.verified)
    shown.caption = spent(first)
    return shown


def spent(result: Result) -> str:
    """The line below a table: seconds by stage, and the most memory."""
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.seconds.items())
    return (
        f"seconds: {stages} (all {sum(result.seconds.values()):.1f}); "
        f"peak memory {result.peak_rss_bytes / 1e6:,.0f} MB"
    )


def warnings(results: Sequence[Result]) -> list[str]:
    """What went otherwise than hoped, each once, and of which result where it is not of all."""
    whose: dict[str, list[str]] = {}
    for result in results:
        for warning in result.warnings:
            whose.setdefault(warning, []).append(Path(result.dest).name)
    return [
        warning if len(names) == len(results) else f"{', '.join(names)}: {warning}"
        for warning, names in whose.items()
    ]
