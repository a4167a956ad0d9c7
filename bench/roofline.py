"""The roofline plot of a result file: every op against the machine's measured ceilings.

    python bench/roofline.py [bench/results/ops-cpu-DATE.json] [roofline.png]

Roofs are the copy bandwidth and the float32 matrix rate of the same run. A filled mark is ours, a
hollow one eager PyTorch; both do the same work, so a line between them is the gain.
"""

import json
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import typer
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"


def draw(result: dict) -> Figure:
    """A figure with both roofs and one mark for every op, shape and provider."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    bandwidth, peak = result["copy_bytes_per_second"], result["float32_per_second"]
    rows = [r for r in result["rows"] if r["operations"]]  # a gather has none
    intensities = [r["operations"] / r["bytes"] for r in rows]
    x = np.geomspace(min(intensities) / 2, 2 * max(*intensities, peak / bandwidth), 200)
    axes.plot(x, np.minimum(x * bandwidth, peak), color="black", linewidth=1)
    axes.annotate(f"copy {bandwidth / 1e9:,.0f} GB/s", (x[2], x[2] * bandwidth * 1.15), rotation=35)
    axes.annotate(f"float32 {peak / 1e12:.2g} Tflop/s", (x[-60], peak * 1.15))
    colours = matplotlib.colormaps["tab10"].colors
    ops = list(dict.fromkeys(r["op"] for r in rows))
    for op, colour in zip(ops, colours, strict=False):
        for provider, fill in (("ours", colour), ("eager", "white")):
            chosen = [r for r in rows if r["op"] == op and r["provider"] == provider]
            axes.scatter(
                [r["operations"] / r["bytes"] for r in chosen],
                [r["operations"] / r["seconds"] for r in chosen],
                facecolor=fill,
                edgecolor=colour,
                label=op if provider == "ours" else None,
                zorder=2,
            )
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="operations a second")
    axes.set_title(f"{result['device']}, {result['date']}: filled ours, hollow eager PyTorch")
    slowest = min(r["operations"] / r["seconds"] for r in rows)
    axes.set_ylim(slowest / 2, 4 * peak)
    axes.legend(loc="lower right")
    return figure


def main(
    result: Annotated[Path | None, typer.Argument(help="Default: the newest.")] = None,
    image: Annotated[Path | None, typer.Argument(help="Default: beside the result file.")] = None,
) -> None:
    """Draw RESULT's roofline into IMAGE."""
    result = result or max(RESULTS.glob("ops-*.json"), key=lambda path: path.stat().st_mtime)
    image = image or result.with_suffix(".png")
    draw(json.loads(result.read_text())).savefig(image, dpi=150)
    print(image)


if __name__ == "__main__":
    typer.run(main)
