"""Quantised folders as sources of a cut: their weights are dequantised as they are read.

What is cut, repaired and written is the dense model that the numbers and their scales stand for; what
loaders do besides, rounding what a projection reads, is not part of it.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import torch

from compressor.config.json_files import object_in
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.float8 import FLOAT8
from compressor.model.tensors import DTYPES, read_tensors
from compressor.quantization.reading import PackedCheckpoint, packing_of

KEY = "quantization_config"
SCALES = "_scale_inv"  # behind the name of a weight whose blocks have scales
INPUTS = (".activation_scale", ".input_scale")  # of what projections read
NAMES = {name: dtype for name, dtype in DTYPES.items() if dtype is not torch.float32}
OTHERS = (
    "Of quantised weights FP8 with scales of blocks (quant_method fp8, weight_scale_inv) and "
    "compressed-tensors' pack-quantized, float-quantized and nvfp4-pack-quantized are dequantised while "
    "they are read. Make a dense copy of others where their own code runs: model = "
    "AutoModelForCausalLM.from_pretrained(FOLDER); model.dequantize().save_pretrained(COPY)"
)


class Dequantised(Checkpoint):
    """What both kinds have in common. `tensors` are the dense model's, and their sizes what it takes."""

    dequantised = True

    def _open_config(self) -> None:
        super()._open_config()
        for config in (self.config, self.written_config):
            config.pop(KEY, None)

    def _find_weights(self) -> None:
        super()._find_weights()
        self.tensors = {name: dense_sized(entry) for name, entry in self.tensors.items()}
        self.side = {name: dense_sized(entry) for name, entry in self.side.items()}
        self.notes.append(
            f"The weights of {self.path} are quantised. They are dequantised as they are read, and the "
            f"result is dense, of {str(self.dtype).removeprefix('torch.')}; --quantize packs it again."
        )

    @property
    def bytes(self) -> int:
        return sum(entry.end - entry.begin for entry in self.tensors.values())

    def model_config(self):
        config = super().model_config()
        vars(config).pop(KEY, None)
        return config

    def file_of(self, name: str) -> None:
        return None


class BlockScaled(Dequantised):
    """FP8 as DeepSeek and Qwen publish it: NAME.weight float8 [out, in], and NAME.weight_scale_inv, by
    which its blocks are multiplied: one number, or [blocks of out, blocks of in].
    """

    dtypes = DTYPES | {"F8_E4M3": FLOAT8}

    def _check_format(self) -> None:
        block = self.config[KEY].get("weight_block_size")
        whole = block is None or (
            isinstance(block, list)
            and len(block) == 2
            and all(type(n) is int and n > 0 for n in block)
        )
        if not whole:
            raise InputError(f"The weight_block_size of {self.path} is {block!r}, not two numbers.")
        self.block = block

    def _find_weights(self) -> None:
        stored, said = self.tensors, self.written_config.get("dtype")
        said = said or self.written_config.get("torch_dtype")
        dense = getattr(torch, str(said), None)
        self.tensors = dense_entries(stored, self.block, dense if dense in NAMES.values() else None)
        super()._find_weights()

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        return read_scaled(self.tensors, list(names))

    def read_side(self, name: str) -> torch.Tensor:
        return read_scaled(self.side, [name])[name]


class Unpacked(Dequantised, PackedCheckpoint):
    """A folder of compressed-tensors' in a form that is read here."""

    def _check_format(self) -> None:
        super()._check_format()
        self.packing = None  # what is computed with is dense


def dense_sized(entry: SimpleNamespace) -> SimpleNamespace:
    """The entry with the bytes of the tensor that it stands for."""
    return SimpleNamespace(
        **vars(entry) | {"end": entry.begin + entry.numel * entry.dtype.itemsize}
    )


def dense_entries(
    stored: Mapping[str, SimpleNamespace], block: list[int] | None, dtype: torch.dtype | None
) -> dict[str, SimpleNamespace]:
    """Header entries of the dense tensors, `scales` being that of what a weight is multiplied by.

    InputError where a weight has no scales, or has not one for every block.
    """
    entries = {}
    for name, entry in stored.items():
        if name.endswith((SCALES, *INPUTS)):
            continue
        if entry.dtype is FLOAT8:
            if (scales := stored.get(name + SCALES)) is None:
                raise InputError(
                    f"{entry.file} holds {name} in FP8 without {name + SCALES}. {OTHERS}."
                )
            shape = [-(-n // size) for n, size in zip(entry.shape, block or (), strict=False)]
            if scales.numel != 1 and scales.shape != shape:
                raise InputError(
                    f"{name + SCALES} in {scales.file} has the shape {scales.shape}, and {entry.shape} "
                    f"in blocks of {block} makes {shape}."
                )
            changes = {"dtype": dtype or torch.bfloat16, "scales": scales, "block": block}
            entry = SimpleNamespace(**vars(entry) | changes)
        entries[name] = entry
    return entries


def read_scaled(
    entries: Mapping[str, SimpleNamespace], names: list[str]
) -> dict[str, torch.Tensor]:
    """The named tensors, those with scales multiplied by them in float32."""
    tensors = read_tensors(entries, names)
    stored = [
        (name, numbers, entry)
        for name in names
        for numbers, entry in pieces(tensors[name], entries[name])
        if hasattr(entry, "scales")
    ]
    of_each = {entry.key: entry.scales for _, _, entry in stored}
    scales = read_tensors(of_each, of_each)
    for name, numbers, entry in stored:
        product = multiplied(numbers, scales[entry.key], entry)
        if entries[name].parts:
            numbers.copy_(product)
        else:
            tensors[name] = product
    return tensors


def pieces(
    tensor: torch.Tensor, entry: SimpleNamespace
) -> Iterator[tuple[torch.Tensor, SimpleNamespace]]:
    """A tensor with its entry; of a stack those of single experts, as views."""
    if not entry.parts:
        yield tensor, entry
        return
    for matrix, parts in zip(tensor, entry.parts, strict=True):
        yield from zip(matrix.split([part.shape[0] for part in parts]), parts, strict=True)


def multiplied(numbers: torch.Tensor, scales: torch.Tensor, entry: SimpleNamespace) -> torch.Tensor:
    """The dense weight of these numbers, by the scales of their blocks."""
    factors = scales.float()
    if factors.numel() > 1:
        for axis, size in enumerate(entry.block):
            factors = factors.repeat_interleave(size, axis).narrow(axis, 0, entry.shape[axis])
    return (numbers.float() * factors).to(entry.dtype)


def open_source(path: str | Path) -> Checkpoint:
    """The checkpoint in a folder, to be cut: dense, or dequantised as it is read.

    InputError for what is quantised otherwise, with what makes a dense copy of it.
    """
    config = object_in(Path(path) / "config.json")
    said = config.get(KEY)
    if not said:
        return Checkpoint(path)
    if isinstance(said, Mapping) and said.get("quant_method") == "fp8":
        return BlockScaled(path)
    if packing_of(config) is not None:
        return Unpacked(path)
    how = said.get("quant_method") if isinstance(said, Mapping) else said
    raise InputError(f"{path} holds weights that are quantised by {how!r}. {OTHERS}.")
