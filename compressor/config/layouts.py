"""What a result is written as: its model type, and its layout, which is how its widths are written."""

from dataclasses import dataclass

from compressor.config.options import option
from compressor.errors import InputError

UNIFORM = "uniform"  # all blocks alike: loads everywhere
PER_LAYER = "per-layer"  # blocks of their own widths: loads with code of its own
PADDED = "padded"  # the same, filled with zeros: for evaluation
# Every layout's writer: a class of a module of `compressor.writing`.
LAYOUTS = {UNIFORM: "cuts.Uniform", PER_LAYER: "cuts.PerLayer", PADDED: "cuts.Padded"}
ALL = "all"  # one result of each
UNLIKE = "--layout per-layer (loads with code of its own) or padded (zeros, to evaluate it)"


def check_layout_name(layout: str) -> None:
    if layout not in LAYOUTS:
        raise InputError(f"The layout {layout!r} is not one of {', '.join(LAYOUTS)}.")


@dataclass(frozen=True)
class WriteConfig:
    layout: str = option(
        UNIFORM,
        "--layout",
        "uniform: all blocks alike, which stock engines load. per-layer: every block with its own "
        "widths, which transformers loads with trust_remote_code.",
    )
    container: str = option("auto", "--container", "Model type to write, or auto.")
