"""The picture of a result: widths that stay, scores and what they are made of, and where they are cut.

What each panel shows is an array that a pure function returns; drawing it needs matplotlib, which is
optional (`pip install 'compressor-llm[report]'`) and imported when a picture is drawn.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, cycle
from pathlib import Path

import numpy as np
import torch

from compressor.config.hub_names import called
from compressor.config.target import Target
from compressor.errors import MachineError
from compressor.model.groups import unit_names
from compressor.model.source import Source
from compressor.planning.costs import Costs
from compressor.planning.landscape import Landscape, scaled
from compressor.planning.lattice import Lattice
from compressor.planning.plan import Plan
from compressor.planning.ranking import normalised, solve_globally
from compressor.scoring.scores import Scores

PICTURE = "compression.png"
NAMES = {"ffn": "FFN channels", "attention": "KV groups"}
# Okabe and Ito's colours, told apart by the colour-blind; lines differ in dash and mark as well.
COLOURS = {"ffn": "#0072B2", "attention": "#D55E00"}
FUSED = {"color": "black", "linestyle": "-", "linewidth": 3}  # below the lines of its parts
PARTS = (
    {"color": "#E69F00", "linestyle": "--", "marker": "s", "markersize": 4},
    {"color": "#009E73", "linestyle": ":", "marker": "^", "markersize": 5},
)
LEGEND = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.1, "ncols": 4}
LEGEND |= {"fontsize": "small", "frameon": False, "handlelength": 1.1, "columnspacing": 0.9}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
WIDTH, ROW, MARGIN, DPI = 11, 2.3, 0.4, 90  # inches, and dots an inch
FEW = 64  # units of a block that are drawn one by one


def kept_shares(plan: Plan, units: Sequence[Mapping[str, int]]) -> dict[str, np.ndarray]:
    """Of each group [blocks]: the percentage of a block's units that stays; NaN where it has none."""
    pairs = list(zip(plan.widths(), units, strict=True))
    return {
        g: np.array([100 * w[g] / whole[g] if whole[g] else np.nan for w, whole in pairs])
        for g in units[0]
    }


def quantiles(values: Sequence[torch.Tensor]) -> np.ndarray:
    """[quantiles, blocks] of one tensor [units] a block."""
    none = np.full(len(QUANTILES), np.nan)
    found = [np.quantile(v.double().numpy(), QUANTILES) if len(v) else none for v in values]
    return np.stack(found, 1)


def cut_levels(values: Sequence[torch.Tensor], kept: Sequence[list[int]]) -> np.ndarray:
    """[blocks]: the lowest of a block's scores that stays; NaN where all stay."""
    return np.array(
        [
            v[units].min().item() if len(units) < len(v) else np.nan
            for v, units in zip(values, kept, strict=True)
        ]
    )


def block_sparsity(
    widths: Sequence[Mapping[str, int]], units: Sequence[Mapping[str, int]], costs: Costs
) -> np.ndarray:
    """[blocks]: the percentage of a block's prunable parameters that goes."""

    def size(width: Mapping[str, int]) -> int:
        return sum(count * costs.unit[g]["params"] for g, count in width.items())

    pairs = zip(widths, units, strict=True)
    return np.array([100 - 100 * size(w) / size(u) if size(u) else 0 for w, u in pairs])


def varying_rates(scores: Scores) -> dict[str, list[dict[str, torch.Tensor]]]:
    """The rates of every block by the part's name, of those that are not the same everywhere."""
    return {
        part: blocks
        for part, blocks in scores.rates.items()
        if torch.cat([v for block in blocks for v in block.values()]).unique().numel() > 1
    }


def ranked_sparsity(
    scores: Scores, plan: Plan, checkpoint: Source, lattice: Lattice
) -> dict[str, np.ndarray]:
    """`block_sparsity` of a global ranking by the fused score and by each of its parts, by name.

    For the plan's target and protected blocks, whatever its allocation is.
    """
    target, protect = Target(**plan.about["asked"]), plan.about["protect"]
    costs, sparsities = Costs.of(checkpoint), {}
    for name, blocks in {"fused": scores.blocks, **scores.parts}.items():
        widths = solve_globally(Scores(blocks), target, checkpoint, lattice, protect)
        sparsities[name] = block_sparsity(widths, checkpoint.block_units, costs)
    return sparsities


def loss_curves(scores: Scores, group: str) -> tuple[list[int], np.ndarray] | None:
    """The numbers of units of a group, and the nats a token that a cut to so many adds, the other group
    being whole [blocks, numbers]; None where the loss was not measured.
    """
    landscape = Landscape.of(scores)
    if landscape is None or not landscape.losses:
        return None
    steps = {"attention": landscape.attention, "ffn": landscape.ffn}
    curves = scaled(landscape, Lattice(landscape.ffn, landscape.attention))
    rows = [nats[:, -1] if group == "attention" else nats[-1] for nats in curves]
    return steps[group], torch.stack(rows).numpy()


def draw(path: Path, scores: Scores, plan: Plan, checkpoint: Source, lattice: Lattice) -> None:
    """Draw a plan and the scores it was made from into a PNG; `MachineError` without matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MachineError(
            f"{path.name} was not drawn: matplotlib is not installed "
            "(pip install 'compressor-llm[report]')."
        ) from None
    figure = figure_of(scores, plan, checkpoint, lattice)
    # Without the version of matplotlib in it, the same run gives the same bytes.
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def figure_of(scores: Scores, plan: Plan, checkpoint: Source, lattice: Lattice):
    """The figure: a row a subject, FFN on the left and attention on the right, blocks along x; the FFN
    alone where no block has KV groups.
    """
    from matplotlib.figure import Figure

    rates = varying_rates(scores)
    groups = [g for g in NAMES if checkpoint.units[g]]
    rows: list = [groups]
    rows += [[f"{part} rate {g}" for g in groups] for part in rates]
    rows += [[f"scores {g}" for g in groups]]
    curves = {g: loss_curves(scores, g) for g in groups}
    rows += [[f"curves {g}" for g in groups]] if all(curves.values()) else []
    rows += [["sparsity"] * len(groups)] if scores.parts else []
    height = ROW * len(rows) + MARGIN
    grid = {"left": 0.08, "right": 0.99, "wspace": 0.19, "hspace": 0.55}
    grid |= {"bottom": MARGIN / height, "top": 1 - 1.5 * MARGIN / height}
    figure = Figure(figsize=(WIDTH, height))
    panels = figure.subplot_mosaic(rows, gridspec_kw=grid)
    figure.suptitle(title_of(scores, plan, checkpoint), y=1 - 0.25 * MARGIN / height, va="top")
    shares = kept_shares(plan, checkpoint.block_units)
    for group in groups:
        counts = [units[group] for units in checkpoint.block_units]
        draw_widths(panels[group], group, shares[group], counts)
        for part, blocks in rates.items():
            panel = panels[f"{part} rate {group}"]
            draw_rates(panel, group, part, [block[group] for block in blocks])
        kept = [block[group] for block in plan.blocks]
        draw_scores(panels[f"scores {group}"], group, normalised(scores.blocks, group), kept)
        if curves[group]:
            draw_curves(panels[f"curves {group}"], group, *curves[group])
    if scores.parts:
        sparsities = ranked_sparsity(scores, plan, checkpoint, lattice)
        result = block_sparsity(plan.widths(), checkpoint.block_units, Costs.of(checkpoint))
        draw_sparsity(panels["sparsity"], sparsities, result, plan.about["allocate"])
    said = unit_names(checkpoint.family)["ffn"]
    for name, axes in panels.items():
        axes.set_title(
            axes.get_title("left").replace(NAMES["ffn"], said), loc="left", size="medium"
        )
        if not name.startswith("curves"):
            axes.set_xlim(-0.6, checkpoint.blocks - 0.4)
            axes.set_xlabel("block", labelpad=1)
        axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # a MaxNLocator
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:  # beside the title, where no data are
            axes.legend(**LEGEND)
    return figure


def title_of(scores: Scores, plan: Plan, checkpoint: Source) -> str:
    about = scores.about
    return (
        f"{called(checkpoint.path)}, {about['method']} ({about['mode']}): "
        f"{plan.about['keep_reached']:.1%} of all parameters stay, {plan.about['allocate']} allocation"
    )


def label(axes, title: str, ylabel: str, **limits) -> None:
    axes.set_title(title, loc="left", size="medium")
    axes.set(ylabel=ylabel, **limits)


def draw_widths(axes, group: str, shares: np.ndarray, units: Sequence[int]) -> None:
    axes.bar(range(len(shares)), shares, color=COLOURS[group])
    there = {*units} - {0}
    whole = f"{max(there):,}" if len(there) == 1 else "the block's"
    label(axes, f"{NAMES[group]} that stay", f"% of {whole}", ylim=(0, 105))


def draw_rates(axes, group: str, part: str, rates: Sequence[torch.Tensor]) -> None:
    low, _, _, _, high = quantiles(rates)
    band = {"color": COLOURS[group], "alpha": 0.25, "linewidth": 0, "label": "5-95 %"}
    axes.fill_between(range(len(rates)), low, high, **band)
    mean = [rate.mean().item() for rate in rates]
    axes.plot(mean, color=COLOURS[group], marker="o", markersize=4, label="mean")
    label(axes, f"Fusion rate of {NAMES[group]}", f"{part} share", ylim=(0, 1))


def draw_scores(
    axes, group: str, values: Sequence[torch.Tensor], kept: Sequence[list[int]]
) -> None:
    """Units one by one where they are few, else quantiles; a bar at the lowest score that stays."""
    if max(map(len, values)) <= FEW:
        draw_units(axes, COLOURS[group], values, kept)
        lowest = torch.cat(list(values)).min()
    else:
        shown = quantiles(values)
        draw_quantiles(axes, COLOURS[group], shown)
        lowest = np.nanmin(shown)
    levels = cut_levels(values, kept)
    if not np.isnan(levels).all():
        middles = np.arange(len(values))
        axes.hlines(levels, middles - 0.3, middles + 0.3, color="black", linewidth=2, label="cut")
    if lowest > 0:
        axes.set_yscale("log", subs=(2, 5))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    label(axes, f"Scores of {NAMES[group]}", "score / model's mean")


def draw_units(axes, colour: str, values: Sequence[torch.Tensor], kept) -> None:
    stays = [(b, v[u].item()) for b, v in enumerate(values) for u in kept[b]]
    goes = [(b, v[u].item()) for b, v in enumerate(values) for u in {*range(len(v))} - {*kept[b]}]
    size = 26 if len(values) <= 12 else 9
    axes.scatter(*zip(*stays, strict=True), size, color=colour, label="stays")
    if goes:
        axes.scatter(*zip(*goes, strict=True), size, "none", edgecolor=colour, label="goes")


def draw_quantiles(axes, colour: str, shown: np.ndarray) -> None:
    low, lower, middle, upper, high = shown
    blocks = range(len(low))
    axes.fill_between(blocks, low, high, color=colour, alpha=0.2, linewidth=0, label="5-95 %")
    axes.fill_between(blocks, lower, upper, color=colour, alpha=0.4, linewidth=0, label="25-75 %")
    axes.plot(middle, color=colour, label="median")


def draw_curves(axes, group: str, units: Sequence[int], nats: np.ndarray) -> None:
    """A line a block, the later the darker; named where there is room."""
    for block, values in enumerate(nats):
        depth = (block + 1) / len(nats)
        name = f"block {block}" if block in (0, len(nats) - 1) else None
        axes.plot(units, values, color=COLOURS[group], alpha=0.25 + 0.75 * depth, label=name)
    label(axes, f"Loss by {NAMES[group]} of one block", "nats a token", ylim=(0, None))
    axes.set_xlabel("units that stay", labelpad=1)


def draw_sparsity(
    axes, sparsities: Mapping[str, np.ndarray], result: np.ndarray, allocation: str
) -> None:
    axes.bar(range(len(result)), result, color="0.85", label=f"this result ({allocation})")
    for (name, sparsity), style in zip(
        sparsities.items(), chain([FUSED], cycle(PARTS)), strict=False
    ):
        axes.plot(sparsity, label=f"global ranking, {name}", **style)
    label(axes, "Sparsity: parameters of each block", "% that goes", ylim=(0, None))
