"""The picture of a sweep, quality by size, and its page, which loads nothing from elsewhere."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from compressor.config.job import SIZES
from compressor.config.sweep import label, varying
from compressor.errors import MachineError
from compressor.report.page import DOCUMENT, PAGE, STYLE
from compressor.report.page import table as html_table
from compressor.report.swept import HEADS, REJECTED, Row, best, caption, cells, notes

# Okabe and Ito's colours, told apart by the colour-blind; series differ in marks as well.
SERIES = tuple(
    zip(
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
        ("o", "s", "^", "D", "v", "P"),
        strict=True,
    )
)
GREY = "#8a8a8a"  # seen on white and on black
MB = 1e6


def series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The measured rows by what they were made with, whatever their sizes."""
    told = [name for name in varying([row.options for row in rows]) if name not in SIZES]
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.made and row.perplexity is not None:
            found.setdefault(label(row.options, told) if told else "results", []).append(row)
    return found


def draw(file: Path, rows: Sequence[Row], source: str) -> None:
    """Perplexity by size into an SVG; `MachineError` without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MachineError(
            f"{file.name} was not drawn: matplotlib is not installed "
            "(pip install 'compressor-llm[report]')."
        ) from None
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, some) in enumerate(series(rows).items()):
        colour, mark = SERIES[number % len(SERIES)]
        points = [(row.bytes / MB, row.perplexity) for row in some]
        axes.scatter(*zip(*points, strict=True), color=colour, marker=mark, label=name)
    front = [(row.bytes / MB, row.perplexity) for row in best(rows)]
    if front:
        axes.plot(*zip(*front, strict=True), color=GREY, linewidth=1, label="smallest of a quality")
    before = next((row.perplexity_before for row in rows if row.perplexity_before), None)
    if before:
        axes.axhline(before, color=GREY, linewidth=1, linestyle=":", label="source")
    axes.set_title(f"{source}: perplexity by size", color=GREY, fontsize=11)
    axes.set_xlabel("megabytes", color=GREY)
    axes.set_ylabel("perplexity", color=GREY)
    axes.tick_params(colors=GREY)
    axes.grid(alpha=0.25, color=GREY)
    axes.spines[:].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", frameon=False, labelcolor=GREY)
    # The same rows give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "compressor", "svg.fonttype": "path"}):
        figure.savefig(file, transparent=True, metadata={"Date": None, "Creator": None})


def write_page(file: Path, rows: Sequence[Row], source: str, picture: Path) -> None:
    """The page of a sweep, with its picture where there is one."""
    title = f"{source}, a sweep of {len(rows)} results"
    body = "\n".join(sections(rows, picture))
    text = DOCUMENT.substitute(
        title=escape(title), style=STYLE.read_text(encoding="utf-8"), body=body
    )
    file.write_text(text, encoding="utf-8")


def sections(rows: Sequence[Row], picture: Path) -> Iterator[str]:
    if picture.exists():
        drawn = picture.read_text(encoding="utf-8")
        yield f"<figure>{drawn[drawn.index('<svg') :]}</figure>"
    starred = best(rows)
    lines = [[row.name + " *" * (row in starred), row.state, *cells(row)] for row in rows]
    yield html_table(("result", "state", *HEADS), lines)
    links = (link(row) for row in rows if row.made)
    yield f"<p>{escape(caption(rows))}. The page of each: {', '.join(links)}.</p>"
    if told := notes(rows):
        yield f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in told)}</ul>"


def link(row: Row) -> str:
    """To the page of a result."""
    folder = row.name + ".rejected" * (row.state == REJECTED)
    return f'<a href="{quote(folder)}/{PAGE}">{escape(row.name)}</a>'
