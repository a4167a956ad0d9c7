"""docs/real.svg, the picture of the README: what `make real` measured beside other programs.

    python docs/make_picture.py

A test draws it anew and compares.
"""

import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

sys.path.insert(0, str(Path(__file__).parent))

from make_results import read_rows  # it adds bench/ to the path
from real_report import DENSE, peers_of

PICTURE = Path(__file__).parent / "real.svg"
MODEL, WINDOWS = "SmolLM2-135M", "4"
OURS, GREY = "#2f7ed8", "#8a8a8a"  # seen on white and on black
MOST = 3.3  # what leaves more is out of the picture
# Labels that would lie on another, or on a line.
LEFT = ("FLAP UL-UM", "SliceGPT", "2SSP", "LLM-Pruner", "ModelOpt")


def lines(rows: list[dict], dense: float) -> dict[str, list[tuple[float, float]]]:
    """Points (share removed, times dense) by what they are called, from left to right."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        point = 1 - row["share"], row["perplexity"][WINDOWS] / dense
        if point[1] <= MOST:
            found.setdefault(row["run"], []).append(point)
    return {name: sorted(points) for name, points in found.items()}


def picture() -> Figure:
    matplotlib.rcParams |= {"svg.hashsalt": "compressor", "svg.fonttype": "path"}
    rows = [row for row in read_rows() if row["model"] == MODEL and not row["draw"]]
    dense = next(row for row in rows if row["run"] == DENSE)["perplexity"][WINDOWS]
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, points in lines(peers_of(MODEL, [int(WINDOWS)]), dense).items():
        axes.plot(*zip(*points, strict=True), color=GREY, linewidth=1, marker="o", markersize=3.5)
        side = {"ha": "right", "xytext": (-6, 0)} if name.startswith(LEFT) else {"xytext": (6, 0)}
        said = name.partition(" (")[0]
        axes.annotate(said, points[-1], textcoords="offset points", va="center", color=GREY, **side)
    ours = lines([row for row in rows if row["run"] == "default"], dense)["default"]
    axes.plot(*zip(*ours, strict=True), color=OURS, linewidth=2.5, marker="o")
    for point in ours:
        axes.annotate(
            f"{point[1]:.2f}",
            point,
            textcoords="offset points",
            xytext=(0, -14),
            ha="center",
            color=OURS,
        )
    axes.annotate(
        "compress",
        ours[-1],
        textcoords="offset points",
        xytext=(8, 0),
        va="center",
        color=OURS,
        weight="bold",
    )
    axes.set(xlim=(0.085, 0.36), ylim=(1, MOST), yscale="log")
    axes.set_title(
        f"{MODEL}: perplexity on WikiText-2, times the dense model's", color=GREY, fontsize=11
    )
    axes.set_xlabel("weights removed from the blocks, without training of the whole", color=GREY)
    axes.xaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.3]))
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.yaxis.set_major_locator(FixedLocator([1, 1.25, 1.5, 2, 2.5, 3]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(colors=GREY)
    axes.grid(alpha=0.25, color=GREY)
    axes.spines[:].set_visible(False)
    return figure


def draw(file: Path) -> None:
    picture().savefig(file, transparent=True, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    draw(PICTURE)
