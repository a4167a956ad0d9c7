"""compressed-tensors' pack-quantized format, by its own code: configuration, packing, unpacking.

Instead of NAME.weight a folder holds

    NAME.weight_packed   int32 [out, ceil(in / 8)]    eight q + 8 a word, the first in the lowest bits
    NAME.weight_scale    the model's dtype [out, in / group]
    NAME.weight_shape    int64 [2]                    out and in
"""

from collections.abc import Iterable
from importlib.metadata import version

import torch

FORMAT = "pack-quantized"
PACKED, SCALE, SHAPE = "_packed", "_scale", "_shape"  # behind the name of the weight
BITS = 4


def scheme_of(group: int):
    """compressed-tensors' own W4A16 for all linear layers, with groups of this size."""
    from compressed_tensors.quantization import preset_name_to_scheme

    scheme = preset_name_to_scheme("W4A16", ["Linear"])
    scheme.weights.group_size = group
    scheme.format = FORMAT
    return scheme


def quantization_config(group: int, ignored: Iterable[str]) -> dict:
    """The entry of config.json; `ignored` names the linear layers that stay as they are."""
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    config = QuantizationConfig(
        config_groups={"group_0": scheme_of(group)},
        format=FORMAT,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=list(ignored),
    )
    return {"version": version("compressed-tensors"), **config.model_dump(mode="json")}


def packed(
    name: str, weight: torch.Tensor, scale: torch.Tensor, group: int
) -> dict[str, torch.Tensor]:
    """The tensors to store for the weight `name`; scale [out, in / group] as it is stored.

    On the meta device, their shapes and dtypes alone.
    """
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor

    # The dtype in which it divides and rounds is the scale's: both go in as float32.
    dense = {"weight": weight.float(), "weight_scale": scale.float()}
    compressed = PackedQuantizationCompressor.compress(dense, scheme_of(group))
    compressed["weight_scale"] = scale
    return {name + key.removeprefix("weight"): tensor for key, tensor in compressed.items()}


def unpacked(
    packed: torch.Tensor, scale: torch.Tensor, shape: torch.Size | list[int]
) -> torch.Tensor:
    """The dense weight [out, in] in the scales' dtype."""
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor

    compressed = {"weight_packed": packed, "weight_scale": scale, "weight_shape": torch.Size(shape)}
    group = shape[-1] // scale.shape[-1]
    return PackedQuantizationCompressor.decompress(compressed, scheme_of(group))["weight"]
