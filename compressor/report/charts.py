"""Charts of the report as SVG text: bars and lines over the blocks, in colours that the page sets.

A value of None is left out. Titles within a chart say a mark's exact value when it is pointed at.
"""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import count

WIDTH, HEIGHT = 720, 190  # of the drawing; the page scales it to what there is room for
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 10, 26
COLOURS = 4  # that the page's style has, as --c0, --c1, ...
Values = Sequence[float | None]


def bars(series: Mapping[str, Values], unit: str, most: float | None = None) -> str:
    """Bars side by side, one of each series a block."""
    number = max(map(len, series.values()))
    top = most or highest(series)
    step = (WIDTH - LEFT - RIGHT) / number
    wide = step * 0.8 / len(series)
    marks = []
    for row, (name, values) in enumerate(series.items()):
        for block, value in enumerate(values):
            if value is None:
                continue
            x, y = LEFT + step * (block + 0.1) + wide * row, height(value, top)
            marks.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{HEIGHT - BOTTOM - y:.1f}" '
                f'fill="var(--c{row % COLOURS})"><title>block {block}, {escape(name)}: {value:.4g} '
                f"{escape(unit)}</title></rect>"
            )
    ticks = [(LEFT + step * (block + 0.5), str(block)) for block in some(number)]
    return chart(marks, ticks, top, unit, series)


def lines(series: Mapping[str, Values], unit: str, along: Sequence[str]) -> str:
    """A line of each series; along: what stands below its points."""
    top, many = highest(series), max(2, len(along))
    step = (WIDTH - LEFT - RIGHT) / (many - 1)
    marks = []
    for row, (name, values) in enumerate(series.items()):
        places = [(LEFT + step * i, height(v, top)) for i, v in enumerate(values) if v is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        colour = f"var(--c{row % COLOURS})"
        marks.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2">'
            f"<title>{escape(name)}</title></polyline>"
        )
    ticks = [(LEFT + step * i, along[i]) for i in some(len(along))]
    return chart(marks, ticks, top, unit, series)


def chart(
    marks: Sequence[str],
    ticks: Sequence[tuple[float, str]],
    top: float,
    unit: str,
    names: Mapping[str, Values],
) -> str:
    """Marks with their axes, and the legend above them."""
    base = HEIGHT - BOTTOM
    grid = []
    for share in (0, 0.5, 1):
        y = height(share * top, top)
        grid.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        grid.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share * top:.3g}</text>'
        )
    grid += [
        f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle">{escape(t)}</text>'
        for x, t in ticks
    ]
    legend = " ".join(
        f'<span><i style="background:var(--c{row % COLOURS})"></i>{escape(name)}</span>'
        for row, name in zip(count(), names, strict=False)
    )
    drawn = f'<g class="grid">{"".join(grid)}</g>{"".join(marks)}'
    return (
        f"<figure><figcaption>{legend} <small>{escape(unit)}</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{drawn}</svg></figure>'
    )


def height(value: float, top: float) -> float:
    """The place of a value on the vertical axis."""
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(value, top) / top)


def highest(series: Mapping[str, Values]) -> float:
    """The largest value; 1 where all are zero or none is there."""
    return max((v for values in series.values() for v in values if v is not None), default=0) or 1


def some(number: int) -> range:
    """Places that are named: not more than some fifteen."""
    return range(0, number, max(1, -(-number // 15)))
