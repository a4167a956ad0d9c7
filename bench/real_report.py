"""What `make real` measured, beside what other programs leave of the same models: a table, a picture."""

import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from rich.table import Table

PEERS = Path(__file__).with_name("peers_real.csv")
DENSE = "dense"
TEXTS = ("c4", "tinystories")
MARKS = "osD^v<>pPX*h"


def peers_of(model: str, counts: Iterable[int]) -> list[dict]:
    """Other programs' results as rows like ours, with the perplexities of these window counts alone."""
    found = defaultdict(dict)
    with PEERS.open() as lines:
        for row in csv.DictReader(line for line in lines if not line.startswith("#")):
            if row["model"] == model and int(row["windows"]) in counts:
                key = row["peer"], float(row["cut"]), int(row["parameters"])
                found[key][row["windows"]] = float(row["perplexity"])
    return [
        {"run": name, "draw": 0, "share": 1 - cut, "parameters": size, "perplexity": values}
        for (name, cut, size), values in found.items()
    ]


def named(row: dict) -> str:
    return row["run"] + (f" (draw {row['draw']})" if row["draw"] else "")


def cells(row: dict, dense: dict, counts: Iterable[int]) -> list[str]:
    """A line of the table; a dash is what was not measured."""
    values = row["perplexity"]
    shown = [named(row), f"{1 - row['share']:.4f}", f"{row['parameters']:,}"]
    for name in [*map(str, counts), *TEXTS]:
        times = values[name] / dense["perplexity"][name] if name in values else 0
        shown.append(f"{values[name]:.2f} ({times:.3f} x)" if name in values else "-")
    shown += [f"{row[key]:.3f}" if key in row else "-" for key in ("kl", "top1")]
    of_many = f" for {row['results']}" if row.get("results", 1) > 1 else ""
    shown.append(f"{row['wall'] / 60:.1f}{of_many}" if "wall" in row else "-")
    shown.append(f"{row['forwards']:.1f}{of_many}" if "forwards" in row else "-")
    shown.append(f"{row['peak_rss_bytes'] / 1e9:.2f}" if "peak_rss_bytes" in row else "-")
    return shown


def table(model: str, rows: list[dict], counts: tuple[int, ...], caption: str) -> Table:
    """Ours, the dense model first, and below them the peers."""
    dense = next(row for row in rows if row["run"] == DENSE)
    found = Table(title=f"{model}: perplexity, float32 (times the dense model's)", caption=caption)
    columns = [f"N = {count}" for count in counts] + ["C4", "TinyStories"]
    for column in ("", "cut", "parameters", *columns, "KL", "top 1", "minutes", "forwards", "GB"):
        found.add_column(column, justify="right" if column else "left")
    for row in rows:
        found.add_row(*cells(row, dense, counts))
    found.add_section()
    for row in sorted(peers_of(model, counts), key=lambda row: -row["share"]):
        found.add_row(*cells(row, dense, counts), style="bright_black")
    return found


def accuracies(model: str, rows: list[dict]) -> Table | None:
    """Zero-shot accuracy in percent with its standard error; None where no row has any."""
    rows = [row for row in rows if "accuracy" in row]
    if not rows:
        return None
    found = Table(title=f"{model}: zero-shot accuracy in percent, ± standard error")
    scores = [(t, m) for t, metrics in rows[0]["accuracy"].items() for m in metrics]
    for column in ("", "cut", *(f"{task} {metric}" for task, metric in scores)):
        found.add_column(column, justify="right" if column else "left")
    for row in rows:
        pairs = [row["accuracy"][task][metric] for task, metric in scores]
        shown = [f"{100 * value:.1f} ± {100 * error:.1f}" for value, error in pairs]
        found.add_row(named(row), f"{1 - row['share']:.4f}", *shown)
    return found


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that none beats: no other is cut as much or more, to a hundredth, and is as low."""
    kept: list[tuple[float, float]] = []
    for cut, value in sorted(set(points), key=lambda point: (-round(point[0], 2), point[1])):
        if not kept or value < kept[-1][1]:
            kept.append((cut, value))
    return kept[::-1]


def draw(model: str, rows: list[dict], count: int) -> Figure:
    """Times the dense model's perplexity by the share cut: ours in colour, peers grey, their front.

    What has zeros for weights is left out: it is no smaller.
    """
    dense = next(row for row in rows if row["run"] == DENSE)["perplexity"][str(count)]
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["tab20"].colors
    ours = [row for row in rows if row["run"] != DENSE and row["job"] == "compress"]
    every = []
    for rows_, grey in ((peers_of(model, [count]), True), (ours, False)):
        lines = defaultdict(list)
        for row in rows_:
            point = 1 - row["share"], row["perplexity"][str(count)] / dense
            lines[named(row)].append(point)
        for at, (name, points) in enumerate(lines.items()):
            colour = str(0.5 + 0.04 * (at % 8)) if grey else colours[at % 20]
            xs, ys = zip(*sorted(points), strict=True)
            style = {"linewidth": 0.8, "markersize": 5, "marker": MARKS[at % len(MARKS)]}
            axes.plot(xs, ys, label=name, color=colour, zorder=1 if grey else 2, **style)
            every += points
    best = [*zip(*front(every), strict=True)] or ([], [])
    axes.plot(*best, color="black", linestyle="dotted", label="not beaten")
    axes.set(
        title=f"{model}, the first {count} windows of WikiText-2's test text",
        xlabel="share of the blocks' weights cut",
        ylabel="times the dense model's perplexity",
        yscale="log",
    )
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize="x-small", loc="outside right upper")
    return figure
