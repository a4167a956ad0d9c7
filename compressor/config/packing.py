"""The ways to store the weights of a quantised folder: compressed-tensors' formats, in numbers."""

from dataclasses import dataclass

W4A16, FP8, NVFP4A16 = "w4a16", "fp8", "nvfp4a16"


@dataclass(frozen=True)
class Scheme:
    """preset, format: what compressed-tensors calls it, and config.json. parts: ends of the names that
    are stored for NAME.weight, first that of the quantised numbers. bits: of one. columns: what input
    channels have to be a multiple of, where groups do not say. rounds_inputs: whether what a projection
    reads is rounded to 8 bits, too, when the model runs.
    """

    preset: str
    format: str
    parts: tuple[str, ...]
    bits: int
    kind: str
    columns: int = 1
    rounds_inputs: bool = False


SCHEMES = {
    W4A16: Scheme("W4A16", "pack-quantized", ("_packed", "_scale", "_shape"), 4, "4-bit integers"),
    # 16: what vLLM's CUTLASS kernels of FP8 take.
    FP8: Scheme(
        "FP8_DYNAMIC",
        "float-quantized",
        ("", "_scale"),
        8,
        "8-bit floating-point numbers",
        16,
        True,
    ),
    NVFP4A16: Scheme(
        "NVFP4A16",
        "nvfp4-pack-quantized",
        ("_packed", "_scale", "_global_scale"),
        4,
        "4-bit floating-point numbers",
        16,
    ),
}
NVFP4_GROUP = 16


@dataclass(frozen=True)
class Packing:
    """A scheme, and how many input channels share a scale (None: all of a row)."""

    scheme: str
    group: int | None = None

    @classmethod
    def of(cls, scheme: str, group: int) -> "Packing":
        """group: of w4a16; the others have theirs."""
        return cls(scheme, {W4A16: group, NVFP4A16: NVFP4_GROUP}.get(scheme))

    @property
    def known(self) -> Scheme:
        return SCHEMES[self.scheme]

    @property
    def columns(self) -> int:
        """What the input channels of every projection have to be a multiple of."""
        return self.group or self.known.columns

    @property
    def words(self) -> str:
        shared = f"{self.group} input channels" if self.group else "output channel"
        return f"{self.known.kind} with a scale for every {shared}"

    def weight_bytes(self, rows: int, columns: int, size: int) -> int:
        """Of a weight [rows, columns] with its scales, where a number of the model takes `size`."""
        if self.scheme == FP8:
            return rows * (columns + size)
        scales = rows * (columns // self.columns)
        if self.scheme == NVFP4A16:
            return rows * -(-columns // 2) + scales + 4
        return rows * 4 * -(-columns // 8) + size * scales + 16
