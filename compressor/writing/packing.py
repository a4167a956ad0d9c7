"""compressed-tensors' formats, by its own code: configuration, packing, unpacking.

Instead of NAME.weight [out, in] a folder holds, of w4a16 (its pack-quantized)

    NAME.weight_packed   int32 [out, ceil(in / 8)]    eight q + 8 a word, the first in the lowest bits
    NAME.weight_scale    the model's dtype [out, in / group]
    NAME.weight_shape    int64 [2]                    out and in

of fp8 (its float-quantized)

    NAME.weight          float8_e4m3fn [out, in]
    NAME.weight_scale    the model's dtype [out, 1]

and of nvfp4a16 (its nvfp4-pack-quantized)

    NAME.weight_packed         uint8 [out, in / 2]           two numbers (E2M1) a byte
    NAME.weight_scale          float8_e4m3fn [out, in / 16]  to be divided by the
    NAME.weight_global_scale   float32 [1]
"""

from collections.abc import Iterable, Mapping
from importlib.metadata import version

import torch

from compressor.config.packing import FP8, NVFP4A16, Packing
from compressor.model.float8 import FLOAT8

SCALE, GLOBAL = "_scale", "_global_scale"  # behind the name of the weight

Tensors = dict[str, torch.Tensor]


def scheme_of(packing: Packing):
    """compressed-tensors' own scheme for all linear layers."""
    from compressed_tensors.quantization import preset_name_to_scheme

    scheme = preset_name_to_scheme(packing.known.preset, ["Linear"])
    if packing.group:
        scheme.weights.group_size = packing.group
    scheme.format = packing.known.format
    return scheme


def quantization_config(packing: Packing, ignored: Iterable[str]) -> dict:
    """The entry of config.json; `ignored` names the linear layers that stay as they are."""
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    config = QuantizationConfig(
        config_groups={"group_0": scheme_of(packing)},
        format=packing.known.format,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=list(ignored),
    )
    return {"version": version("compressed-tensors"), **config.model_dump(mode="json")}


def compressor_of(packing: Packing):
    """The class of compressed-tensors that packs and unpacks."""
    from compressed_tensors.compressors import BaseCompressor

    return BaseCompressor.get_value_from_registry(packing.known.format)


def packed(name: str, weight: torch.Tensor, scales: Mapping, packing: Packing) -> Tensors:
    """The tensors to store for the weight `name`. scales: by the ends of their names, as stored."""
    # The dtype in which it divides and rounds is the scale's: both go in as float32.
    dense = {"weight": weight.float()} | {"weight" + k: v.float() for k, v in scales.items()}
    compressed = compressor_of(packing).compress(dense, scheme_of(packing))
    kept = {"weight" + end: compressed["weight" + end] for end in packing.known.parts}
    kept |= {"weight" + end: scale for end, scale in scales.items()}
    return {name + key.removeprefix("weight"): tensor for key, tensor in kept.items()}


def unpacked(
    parts: Mapping[str, torch.Tensor], shape: torch.Size | list[int], packing: Packing
) -> torch.Tensor:
    """The dense weight [out, in] of what is stored for it, by the ends of the names; in the dtype that
    loaders give it: the scales', and bfloat16 of nvfp4a16.
    """
    ends = [end for end in packing.known.parts if end in parts]
    compressed: dict = {"weight" + end: parts[end] for end in ends}
    if "_shape" in packing.known.parts:
        compressed["weight_shape"] = torch.Size(shape)
    return compressor_of(packing).decompress(compressed, scheme_of(packing))["weight"]


def empty_parts(name: str, shape: torch.Size, dtype: torch.dtype, packing: Packing) -> Tensors:
    """The shapes and dtypes of what is stored for a weight, on the meta device."""
    rows, columns = shape
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "_packed": ((rows, -(-columns // 8)), torch.int32),
        SCALE: ((rows, columns // (packing.group or columns)), dtype),
        "_shape": ((2,), torch.int64),
    }
    if packing.scheme == FP8:
        shapes[""] = (rows, columns), FLOAT8
    if packing.scheme == NVFP4A16:
        shapes["_packed"] = (rows, columns // 2), torch.uint8
        shapes |= {SCALE: (shapes[SCALE][0], FLOAT8), GLOBAL: ((1,), torch.float32)}
    return {
        name + end: torch.empty(shapes[end][0], dtype=shapes[end][1], device="meta")
        for end in packing.known.parts
    }
