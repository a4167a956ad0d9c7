"""What a result is written as: its model type, and its layout, which is how its widths are written."""

from dataclasses import dataclass

from compressor.config.options import option
from compressor.errors import InputError

UNIFORM = "uniform"  # all blocks alike: loads everywhere
NAS = "nas"  # blocks of their own FFN widths: loads in vLLM
PER_LAYER = "per-layer"  # blocks of their own widths: loads with code of its own
PADDED = "padded"  # the same, filled with zeros: for evaluation
ALL = "all"  # one result of each
UNLIKE = (
    "--layout nas (FFN widths alone differ; vLLM loads it), per-layer (loads with code of its own) or "
    "padded (zeros, to evaluate it)"
)


@dataclass(frozen=True)
class Layout:
    """writer: a class of a module of `compressor.writing`. alike: the groups of which all blocks have as
    many units.
    """

    writer: str
    alike: tuple[str, ...] = ()


LAYOUTS = {
    UNIFORM: Layout("cuts.Uniform", ("attention", "ffn")),
    NAS: Layout("nas.Nas", ("attention",)),
    PER_LAYER: Layout("cuts.PerLayer"),
    PADDED: Layout("cuts.Padded"),
}


def check_layout_name(layout: str) -> None:
    if layout not in LAYOUTS:
        raise InputError(f"The layout {layout!r} is not one of {', '.join(LAYOUTS)}.")


@dataclass(frozen=True)
class WriteConfig:
    layout: str = option(
        UNIFORM,
        "--layout",
        "uniform: all blocks alike, which stock engines load. nas: every block with its own FFN width, "
        "which vLLM and transformers load with trust_remote_code. per-layer: with its own widths, which "
        "transformers loads with trust_remote_code.",
    )
    container: str = option("auto", "--container", "Model type to write, or auto.")
