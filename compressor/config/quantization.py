"""What `--quantize` was asked for, and what does not go with it."""

from dataclasses import dataclass
from importlib.util import find_spec

from compressor.config.options import at_least, check_values, one_of, option
from compressor.errors import InputError


@dataclass(frozen=True)
class QuantConfig:
    """The options of quantisation, with their names and help on the command line."""

    scheme: str = option(
        "none",
        "--quantize",
        "none, or w4a16: 4-bit weights of the blocks' projections; w4a16:64 for groups of 64 that share "
        "a scale (default 128).",
        one_of("none", "w4a16"),
    )
    group: int = option(
        128,
        "quantize_group",
        "Input channels that share a scale; widths are multiples.",
        at_least(2),
    )
    clip: str = option(
        "learned",
        "quantize_clip",
        "learned: shrink the groups' scales, trained on what each block computes; or none.",
        one_of("learned", "none"),
    )

    @property
    def learns(self) -> bool:
        """Whether anything is learned on the calibration text."""
        return self.wanted and self.clip == "learned"

    @property
    def wanted(self) -> bool:
        return self.scheme != "none"

    @property
    def columns(self) -> int:
        """What the input channels of every projection must be a multiple of."""
        return self.group if self.wanted else 1

    def check(self) -> None:
        """Refuse values that cannot be, and what cannot be written here."""
        check_values(self)
        if self.wanted and not find_spec("compressed_tensors"):
            raise InputError(
                "--quantize writes the format of the package compressed-tensors, which is not "
                "installed: pip install 'compressor-llm[quantize]'."
            )
