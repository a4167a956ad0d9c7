"""The results of a sweep as rows: what each is and cost; as a table for people and for programs."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from rich import box
from rich.table import Table

from compressor.config.amounts import size

WAITING, DONE, REJECTED, FAILED = "waiting", "done", "rejected", "failed"


@dataclass
class Row:
    """A result. None is what was not measured.

    name: its folder's. state: one of the above; sentence, exit_code: why it is not done. *_reached:
    shares that stay. flops_per_token: of decoding behind 2,048 tokens, or as many as the model has
    positions. text: the SHA-256 of what perplexity, kl and agreement were measured on. seconds: of the
    whole job; what results share is counted where it was done.
    """

    name: str
    options: dict = field(default_factory=dict)
    state: str = WAITING
    sentence: str = ""
    exit_code: int = 0
    keep_reached: float | None = None
    keep_blocks_reached: float | None = None
    parameters: int | None = None
    bytes: int | None = None
    flops_per_token: int | None = None
    perplexity_before: float | None = None
    perplexity: float | None = None
    kl: float | None = None
    agreement: float | None = None
    seconds: float | None = None
    text: str | None = None

    @property
    def made(self) -> bool:
        return self.state in (DONE, REJECTED)

    @property
    def times(self) -> float | None:
        """Its perplexity, in those of the source."""
        if self.perplexity is None or not self.perplexity_before:
            return None
        return self.perplexity / self.perplexity_before

    def measure(self, record: dict, flops: int | None) -> None:
        """Take in what compression.json says of it."""
        about = record.get("plan", {}).get("about", {})
        self.keep_reached = about.get("keep_reached", 1.0)
        self.keep_blocks_reached = about.get("keep_blocks_reached", 1.0)
        self.parameters, self.bytes = record.get("parameters_after"), record.get("bytes_after")
        self.perplexity_before = record.get("perplexity_before")
        self.perplexity = record.get("perplexity_after")
        self.kl, self.agreement = record.get("kl"), record.get("agreement")
        self.seconds = round(sum(record.get("run", {}).get("seconds", {}).values()), 1)
        self.text = (record.get("evaluation") or {}).get("sha256")
        self.flops_per_token = flops

    def told(self) -> dict:
        """As JSON has it."""
        return asdict(self)


def best(rows: Sequence[Row]) -> list[Row]:
    """Of what was measured, by size, those that no other is smaller than and as good: Pareto's."""
    found: list[Row] = []
    shown = [row for row in rows if row.made and row.perplexity is not None]
    for row in sorted(shown, key=lambda row: (row.bytes, row.perplexity)):
        if not found or row.perplexity < found[-1].perplexity:
            found.append(row)
    return found


def cells(row: Row) -> list[str]:
    """A row as it is read."""

    def of(value, form: str) -> str:
        return "" if value is None else format(value, form)

    times = "" if row.times is None else f"{row.perplexity:.2f} ({row.times:.3f}x)"
    return [
        of(row.keep_reached, ".4f"),
        of(row.parameters, ","),
        "" if row.bytes is None else size(row.bytes),
        of(row.flops_per_token, ".3g"),
        times,
        of(row.kl, ".4f"),
        of(row.agreement, ".1%"),
        of(row.seconds, ".1f"),
    ]


HEADS = ("stays", "parameters", "size", "FLOPs a token", "perplexity", "KL", "agreement", "seconds")
NARROW = {"FLOPs a token", "seconds"}  # which a terminal of 80 columns has no room for


def table(rows: Sequence[Row], source: str) -> Table:
    """For the terminal: a row a result; a star is on those that no other is smaller than and as good."""
    shown, starred = Table(title=source, box=box.SIMPLE_HEAD, padding=0), best(rows)
    shown.title_justify = shown.caption_justify = "left"
    shown.add_column("result", overflow="fold")
    heads = [head for head in HEADS if head not in NARROW]
    for head in heads:
        shown.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        state = "" if row.state == DONE else f" ({row.state})"
        told = dict(zip(HEADS, cells(row), strict=True))
        name = row.name + " *" * (row in starred) + state
        shown.add_row(name, *(told[head] for head in heads))
    shown.caption = caption(rows)
    return shown


def caption(rows: Sequence[Row]) -> str:
    """What is to be known to read the table."""
    before = next((row.perplexity_before for row in rows if row.perplexity_before), None)
    source = f"; the source has a perplexity of {before:.4f}" if before else ""
    return f"* smallest of its quality{source}"


def write_csv(file: Path, rows: Sequence[Row]) -> None:
    """For programs: a line a result, its options first."""
    unfinished = file.with_suffix(".unfinished")
    options = list(dict.fromkeys(name for row in rows for name in row.options))
    figures = [each.name for each in fields(Row) if each.name not in ("name", "options")]
    with unfinished.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["name", *options, *figures])
        for row in rows:
            told = row.told()
            asked = [row.options.get(name) for name in options]
            writer.writerow([row.name, *asked, *(told[name] for name in figures)])
    unfinished.replace(file)


def notes(rows: Sequence[Row]) -> list[str]:
    """Sentences below the table: what failed, and what cannot be compared."""
    found = [f"{row.name}: {row.sentence}" for row in rows if row.sentence]
    if len({row.text for row in rows if row.text}) > 1:
        found.append(
            "Results were measured on different texts, so compare what each lost and not their "
            "perplexities; `evaluation: TEXT` in the sweep measures all on one."
        )
    return found
