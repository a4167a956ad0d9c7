"""What a result is written as."""

from dataclasses import dataclass

from compressor.config.layouts import UNIFORM
from compressor.config.options import option


@dataclass(frozen=True)
class WriteConfig:
    layout: str = option(
        UNIFORM,
        "--layout",
        "uniform: equal blocks, loads everywhere; per-layer: blocks of their own widths, loads with "
        "trust_remote_code.",
    )
    container: str = option("auto", "--container", "auto, or the model type to write.")
