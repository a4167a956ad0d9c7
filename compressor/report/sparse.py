"""What a pruning of single weights says about itself: the model card and the final table."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from compressor.config.hub_names import called
from compressor.config.layouts import UNIFORM
from compressor.model.families import FAMILIES
from compressor.report.card import how_it_loads, quality
from compressor.report.metadata import head
from compressor.report.result import Result
from compressor.report.table import spent

ZEROS_ALONE = (
    "Zeros alone make nothing smaller or faster: every tensor has its former shape, and stock kernels "
    "multiply by zeros too. They pay off in formats and kernels that leave zeros out."
)

ROUNDING = 5e-5  # of a share of which four digits are shown


def shares(record: dict) -> dict[str, tuple[float, float, float]]:
    """Of each projection the share of zeros over all blocks, in the least and in the most pruned one."""
    projections = {}
    for name, weights in record["weights"].items():
        zeros = [block["zeros"][name] / weights for block in record["blocks"]]
        projections[name.split(".")[-2]] = (sum(zeros) / len(zeros), min(zeros), max(zeros))
    return projections


def zeros_before(record: dict) -> list[str]:
    """A sentence where zeros of the source make the share of zeros larger than it was asked."""
    reached, asked = record["reached"], record["asked"]
    total = len(record["blocks"]) * sum(record["weights"].values())
    had = sum(block["source_zeros"] for block in record["blocks"])
    beyond = record["zeros"] - asked * total
    # What is beyond can also be of other origin: of rounding to 4 bits, or of BESA's parity.
    if beyond <= ROUNDING * total or had < beyond:
        return []
    return [
        f"{had:,} of these weights were zero in the source already, in some rows more of them than were "
        f"to go, so {reached:.4f} of the weights are zero and not {asked:g}."
    ]


def write_card(folder: Path, result: Result, record: dict) -> None:
    """The model card: what this is, what it cost, how it was made."""
    name = called(result.source)
    changed = ", and those that stay are corrected" if record["sparsity"]["corrects"] else ""
    text = f"""{head(folder, Path(result.source), ["pruned", "sparse"])}
# {name}, {result.sparsity_reached:.1%} of the blocks' weights zero

{result.zeros:,} weights of the blocks' projections are zero{changed}. Architecture and shapes
are those of `{name}`{how_it_loads(FAMILIES[result.container], UNIFORM, folder)}

{ZEROS_ALONE}

{quality(result, record)}

Weights were chosen by `{result.method}`, seed {result.seed}. `compression.json` holds all settings
and the zeros of every tensor.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def table(results: Sequence[Result]) -> Table:
    """The final table: a row a measure, of the one result."""
    (result,) = results
    method = result.method + (" + obs" if result.update == "obs" else "")
    shown = Table(title=f"{result.source}  ({method})")
    for column in ("", "before", f"after ({Path(result.dest).name})"):
        shown.add_column(column, justify="right" if column else "left")
    reached, asked = result.sparsity_reached, result.sparsity_asked
    shown.add_row("sparsity of the blocks' weights", "", f"{reached:.4f} (asked {asked:g})")
    for name, (mean, least, most) in result.projections.items():
        shown.add_row(f"  {name}", "", f"{mean:.3f} (blocks {least:.3f} to {most:.3f})")
    for name in ("parameters", "bytes"):
        pair = (getattr(result, f"{name}_{when}") for when in ("before", "after"))
        shown.add_row(name, *(f"{count:,}" for count in pair))
    shown.add_row("type", result.model_type, result.container)
    if result.perplexity_before is not None:
        before, after = result.perplexity_before, result.perplexity_after
        shown.add_row("perplexity", f"{before:.4f}", f"{after:.4f}")
        shown.add_row("KL to the source, nats a token", "", f"{result.kl:.4f}")
        shown.add_row("same likeliest token", "", f"{result.agreement:.1%}")
    if quantization := result.quantization:
        shown.add_row("bits a projection weight", "", f"{quantization['bits_per_weight']:.3f}")
        if result.perplexity_before is not None:
            shown.add_row("perplexity, not quantised", "", f"{result.perplexity_unquantized:.4f}")
    shown.add_row("verified", "", result.verified)
    shown.caption = spent(result)
    return shown
