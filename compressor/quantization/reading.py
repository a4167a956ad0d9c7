"""A quantised folder read as the model it stands for: its weights are unpacked as they are read."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch

from compressor.config.json_files import object_in
from compressor.config.packing import FP8, NVFP4A16, SCHEMES, W4A16, Packing
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.tensors import DTYPES, PACKED_DTYPES, read_tensors
from compressor.writing.packing import SCALE, unpacked

# What compressed-tensors says of the weights of a scheme.
WEIGHTS = {
    W4A16: {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"},
    FP8: {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
    NVFP4A16: {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group"},
}


class PackedCheckpoint(Checkpoint):
    """A folder of one of `SCHEMES`, opened read-only.

    `tensors`, `parameters` and what is read are the dense model's; `bytes` and `stored` the files'.
    """

    dtypes = DTYPES | PACKED_DTYPES

    @property
    def bytes(self) -> int:
        return sum(t.end - t.begin for t in self.stored.values())

    @property
    def parts(self) -> dict[str, list[str]]:
        """The names of what is stored for every packed weight, by its own name."""
        ends = self.stored_as.known.parts
        packed = (name for name in self.tensors if name + SCALE in self.stored)
        return {name: [name + end for end in ends] for name in packed}

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for a quantised weight: itself, its share of a scale, the shape."""
        entries = [self.stored[part] for parts in self.parts.values() for part in parts]
        stored = sum(entry.end - entry.begin for entry in entries)
        return 8 * stored / sum(self.tensors[name].numel for name in self.parts)

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        names = list(names)
        kept = [name for name in names if name + SCALE not in self.stored]
        packed = [name for name in names if name + SCALE in self.stored]
        ends = self.stored_as.known.parts
        tensors = read_tensors(self.stored, [*kept, *(n + end for n in packed for end in ends)])
        for name in packed:
            parts = {end: tensors.pop(name + end) for end in ends}
            dense = self.tensors[name]
            tensors[name] = unpacked(parts, dense.shape, self.stored_as).to(dense.dtype)
        return tensors

    def file_of(self, name: str) -> Path | None:
        return None if name + SCALE in self.stored else super().file_of(name)

    def _check_format(self) -> None:
        config = self.config["quantization_config"]
        if self.wrapper:
            raise InputError(
                f"{self.path} is a quantised {self.wrapper.model_type}, and of texts and images the "
                "original is read; give that."
            )
        self.packing = self.stored_as = packing_of(self.config)
        if self.packing is None:
            schemes = ", ".join(f"{s} ({known.format})" for s, known in SCHEMES.items())
            raise InputError(
                f"{self.path} is quantised by {config.get('quant_method')!r} in a form that is not "
                f"read here; of compressed-tensors' these are: {schemes}."
            )
        if not find_spec("compressed_tensors"):
            raise InputError(
                f"{self.path} holds packed weights; to read them: "
                "pip install 'compressor-llm[quantize]'."
            )

    def _find_weights(self) -> None:
        self.stored = self.tensors
        self.tensors = dense_entries(self.stored, self.stored_as)


def packing_of(config: Mapping) -> Packing | None:
    """How compressed-tensors says that weights are stored, where it is one of `SCHEMES` for all of
    them.
    """
    try:
        said = config["quantization_config"]
        (group,) = said["config_groups"].values()
        weights, inputs = dict(group["weights"]), group.get("input_activations")
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    told = {key: weights.get(key) for key in ("num_bits", "type", "symmetric", "strategy")}
    for scheme, how in WEIGHTS.items():
        known, width = SCHEMES[scheme], weights.get("group_size")
        if (
            said.get("quant_method") == "compressed-tensors"
            and said.get("format") == known.format
            and told == how
            and bool(inputs) == known.rounds_inputs
            and (scheme == FP8 or (width and Packing.of(scheme, width).group == width))
        ):
            return Packing.of(scheme, width)
    return None


def dense_entries(
    stored: Mapping[str, SimpleNamespace], packing: Packing
) -> dict[str, SimpleNamespace]:
    """Header entries of the weights that the packed ones stand for, and all others as they are.

    Where a weight lies is where its packed form does.
    """
    main, *others = packing.known.parts
    weights = {name.removesuffix(SCALE) for name in stored if name.endswith("weight" + SCALE)}
    weights = {name for name in weights if name + main in stored}
    parts = {weight + end for weight in weights for end in others}
    model_dtype = next((t.dtype for n, t in stored.items() if n.endswith("norm.weight")), None)
    entries = {}
    for name, entry in stored.items():
        weight = name.removesuffix(main)
        if weight in weights and name == weight + main:
            rows, columns = entry.shape
            scale = stored[weight + SCALE]
            if packing.scheme == W4A16:
                columns = scale.shape[1] * packing.group
            elif packing.scheme == NVFP4A16:
                columns *= 2
            dtype = model_dtype if packing.scheme == NVFP4A16 else scale.dtype
            dense = {"shape": [rows, columns], "dtype": dtype, "numel": rows * columns}
            entries[weight] = SimpleNamespace(**(vars(entry) | dense))
        elif name not in parts:
            entries[name] = entry
    return entries


def open_model(path: str | Path) -> Checkpoint:
    """The checkpoint in a folder, dense or quantised; to run, and not to cut."""
    quantized = object_in(Path(path) / "config.json").get("quantization_config")
    return PackedCheckpoint(path) if quantized else Checkpoint(path)
