"""A quantised folder read as the model it stands for: its weights are unpacked as they are read."""

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch

from compressor.errors import NOT_JSON, InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.tensors import DTYPES, read_tensors
from compressor.writing.packing import BITS, FORMAT, PACKED, SCALE, SHAPE, unpacked


class PackedCheckpoint(Checkpoint):
    """A pack-quantized folder of 4-bit symmetric weights, opened read-only.

    `tensors`, `parameters` and what is read are the dense model's; `bytes` and `stored` the files'.
    """

    dtypes = DTYPES | {"I32": torch.int32, "I64": torch.int64}

    @property
    def bytes(self) -> int:
        return sum(t.end - t.begin for t in self.stored.values())

    @property
    def group(self) -> int:
        """Input channels that share a scale."""
        return weights_of(self.config)["group_size"]

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for a quantised weight: itself, its share of a scale, the shape."""
        weights = self.tensors.keys() - self.stored.keys()
        parts = [self.stored[w + part] for w in weights for part in (PACKED, SCALE, SHAPE)]
        stored = sum(t.end - t.begin for t in parts)
        return 8 * stored / sum(self.tensors[w].numel for w in weights)

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        names = list(names)
        kept = [name for name in names if name in self.stored]
        packed = [name for name in names if name not in self.stored]
        parts = [name + part for name in packed for part in (PACKED, SCALE)]
        tensors = read_tensors(self.stored, [*kept, *parts])
        for name in packed:
            stored = tensors.pop(name + PACKED), tensors.pop(name + SCALE)
            tensors[name] = unpacked(*stored, self.tensors[name].shape)
        return tensors

    def _check_format(self) -> None:
        config = self.config["quantization_config"]
        weights = weights_of(self.config)
        known = (
            config.get("quant_method") == "compressed-tensors"
            and config.get("format") == FORMAT
            and weights.get("num_bits") == BITS
            and weights.get("symmetric") is True
            and weights.get("strategy") == "group"
        )
        if not known:
            raise InputError(
                f"{self.path} is quantised by {config.get('quant_method')!r} in a form that is not "
                f"read here; compressed-tensors' {FORMAT} with symmetric 4-bit groups is."
            )
        if not find_spec("compressed_tensors"):
            raise InputError(
                f"{self.path} holds packed 4-bit weights; to read them: "
                "pip install 'compressor-llm[quantize]'."
            )

    def _find_weights(self) -> None:
        self.stored = self.tensors
        self.tensors = dense_entries(self.stored, self.group)


def weights_of(config: Mapping) -> dict:
    """How compressed-tensors says that weights are quantised; nothing where there is no one way."""
    try:
        (scheme,) = config["quantization_config"]["config_groups"].values()
        return dict(scheme["weights"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def dense_entries(stored: Mapping[str, SimpleNamespace], group: int) -> dict[str, SimpleNamespace]:
    """Header entries of the weights that the packed ones stand for, and all others as they are.

    A weight's shape and dtype follow from its scales; where it lies is where its packed form does.
    """
    entries = {}
    for name, entry in stored.items():
        weight = name.removesuffix(PACKED)
        if weight != name and (scale := stored.get(weight + SCALE)):
            rows, groups = scale.shape
            shape = [rows, groups * group]
            dense = {"shape": shape, "dtype": scale.dtype, "numel": rows * groups * group}
            entries[weight] = SimpleNamespace(**(vars(entry) | dense))
        elif not any(
            name.endswith(part) and name.removesuffix(part) + PACKED in stored
            for part in (SCALE, SHAPE)
        ):
            entries[name] = entry
    return entries


def open_model(path: str | Path) -> Checkpoint:
    """The checkpoint in a folder, dense or 4-bit; to run, and not to cut."""
    try:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        quantized = bool(config.get("quantization_config"))
    except (OSError, *NOT_JSON, AttributeError):  # which a Checkpoint says in a sentence
        quantized = False
    return PackedCheckpoint(path) if quantized else Checkpoint(path)
