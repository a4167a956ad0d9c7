"""The final table, a row a result, what else is known of the results, and the warnings below it."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from rich import box
from rich.table import Table

from compressor.config.amounts import in_runs, size
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


def asked(target: dict | None) -> str:
    """A result's target in short: `keep 0.7`, `blocks 0.7 of flops`, `5,400,000,000`, `11.00 GB`."""
    if target is None:
        return ""
    kind, value, budget = target["kind"], target["value"], target["budget"]
    if kind in ("params", "bytes"):
        return f"{value:,.0f}" if kind == "params" else size(value)
    share = f"{kind.removeprefix('keep-')} {value:g}"
    return share if budget == "params" else f"{share} of {share_of(target).split()[2].strip(',')}"


def share_of(target: dict | None) -> str | None:
    """The name of what a budget other than parameters bounds; None without one."""
    if target is None or target["budget"] == "params":
        return None
    counted = "flops" if target["budget"] == "flops" else "costs"
    return f"share of {counted}" + ", blocks only" * (target["kind"] == "keep-blocks")


def table(results: Sequence[Result]) -> Table:
    """The final table: a row a result. Shares are of all parameters."""
    first = results[0]
    how = f" ({first.method}, {first.mode})" if first.mode else ""
    before = f"{first.parameters_before:,} parameters, {size(first.bytes_before)}"
    shown = Table(title=f"{Path(first.source).name}: {before}{how}", box=box.SIMPLE_HEAD, padding=0)
    shown.title_justify = "left"
    measured = first.perplexity_before is not None
    shown.add_column("result", overflow="fold")
    heads = ["asked", "stays", "parameters", "size", *(["perplexity", "KL"] if measured else [])]
    for name in heads:
        shown.add_column(name, justify="right", overflow="fold")
    for result in results:
        row = [name_of(result), asked(result.asked), f"{result.keep_reached:.4f}"]
        row += [f"{result.parameters_after:,}", size(result.bytes_after)]
        if measured:
            before, after = result.perplexity_before, result.perplexity_after
            row += [f"{before:.3f} → {after:.3f}", f"{result.kl:.4f}"]
        shown.add_row(*row)
    return shown


def name_of(result: Result) -> str:
    return Path(result.dest).name


def facts(results: Sequence[Result]) -> Table:
    """What else is known: a row a measure, with one value where all results have the same."""
    first = results[0]
    shown = Table.grid(padding=(0, 2, 0, 0))
    shown.add_column(overflow="fold", min_width=22)
    shown.add_column(overflow="fold")

    def row(name: str, said: Callable[[Result], str]) -> None:
        values = {name_of(result): said(result) for result in results}
        same = len({*values.values()}) == 1
        each = (f"{name}: {value}" for name, value in values.items() if value)
        shown.add_row(name, said(first) if same else "\n".join(each))

    row("stays of the blocks", lambda r: f"{r.keep_blocks_reached:.4f}")
    if any(r.dropped_blocks for r in results):
        row("dropped blocks", lambda r: in_runs(r.dropped_blocks or []) or "none")
    if first.hidden_size:
        row("hidden size", lambda r: f"{r.hidden_size:,}")
    for name in dict.fromkeys(share_of(r.asked) for r in results):
        if name is not None:
            row(name, partial(share_reached, name=name))
    if first.quantization:
        row("bits a projection weight", lambda r: f"{r.quantization['bits_per_weight']:.3f}")
    if any(r.held_back for r in results):
        row("held-back loss", comparison)
    row("type", lambda r: f"{r.container} ({r.layout})")
    if first.perplexity_before is not None:
        if any(r.perplexity_pruned != r.perplexity_after for r in results) and (
            any(r.recovery for r in results)
        ):
            row("perplexity before recovery", lambda r: f"{r.perplexity_pruned:.4f}")
        if first.quantization:
            row("perplexity, not quantised", lambda r: f"{r.perplexity_unquantized:.4f}")
        row("same likeliest token", lambda r: f"{r.agreement:.1%}")
    row("verified", lambda r: r.verified)
    row("took", spent)
    return shown


def share_reached(result: Result, name: str) -> str:
    """The share of a budget in the result that has this one, and what was asked."""
    if share_of(result.asked) != name:
        return ""
    return f"{result.budget_reached:.4f} (asked {result.asked['value']:g})"


def spent(result: Result) -> str:
    """Seconds by stage, and the most memory."""
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.seconds.items())
    return (
        f"{sum(result.seconds.values()):.1f} seconds ({stages}); "
        f"{result.peak_rss_bytes / 1e6:,.0f} MB of memory at most"
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
