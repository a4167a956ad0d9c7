"""What `--quantize` was asked for, and what does not go with it."""

from dataclasses import dataclass
from importlib.util import find_spec

from compressor.config.options import at_least, check_values, given_options, one_of, option
from compressor.config.packing import SCHEMES, W4A16, Packing
from compressor.errors import InputError


@dataclass(frozen=True)
class QuantConfig:
    """The options of quantisation, with their names and help on the command line."""

    scheme: str = option(
        "none",
        "--quantize",
        "Projections of the blocks: none; w4a16, 4-bit integers (w4a16:64: a scale for 64 inputs, not "
        "128); fp8, weights and inputs in 8-bit floats; nvfp4a16, weights in 4-bit floats.",
        one_of("none", *SCHEMES),
    )
    group: int = option(
        128,
        "quantize_group",
        "Input channels that share a scale of w4a16; widths are multiples.",
        at_least(2),
    )
    clip: str = option(
        "learned",
        "quantize_clip",
        "Of w4a16. learned: shrink the groups' scales, trained on what each block computes; or none.",
        one_of("learned", "none"),
    )

    @property
    def learns(self) -> bool:
        """Whether anything is learned on the calibration text."""
        return self.scheme == W4A16 and self.clip == "learned"

    @property
    def wanted(self) -> bool:
        return self.scheme != "none"

    @property
    def columns(self) -> int:
        """What the input channels of every projection must be a multiple of."""
        return self.packing.columns if self.wanted else 1

    @property
    def packing(self) -> Packing:
        """How weights will be stored."""
        return Packing.of(self.scheme, self.group)

    def check(self) -> None:
        """Refuse values that cannot be, and what cannot be written here."""
        check_values(self)
        others = [flag for flag in given_options(self) if flag != "--quantize"]
        if self.wanted and self.scheme != W4A16 and others:
            raise InputError(
                f"{others[0]} is of --quantize {W4A16} alone (a number behind a colon is one); leave it "
                f"out of --quantize {self.scheme}."
            )
        if self.wanted and not find_spec("compressed_tensors"):
            raise InputError(
                "--quantize writes the format of the package compressed-tensors, which is not "
                "installed: pip install 'compressor-llm[quantize]'."
            )
