"""A checkpoint as one GGUF file, which llama.cpp runs (`compressor export`).

Models that compute what Llama does go out as the architecture `llama` or, with blocks of their own
widths, as `deci`, where query heads, KV heads and FFN channels are lists; mixtures of experts as the
one of their type. One tensor is in memory at a time; the file gets its name when it is complete.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from compressor.errors import InputError, MachineError
from compressor.model.disk import check_space
from compressor.model.source import Source
from compressor.writing.gguf.architectures import architecture_of
from compressor.writing.gguf.metadata import put_metadata
from compressor.writing.gguf.tensors import (
    extra_tensors,
    is_router,
    parts_of,
    rotated,
    written_names,
)
from compressor.writing.gguf.vocabulary import put_vocabulary, vocabulary_of

# What --type offers, by gguf's names of the tensors' type and of the file's.
TYPES = {
    "f32": ("F32", "ALL_F32"),
    "f16": ("F16", "MOSTLY_F16"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}


def export(
    source: Source,
    out: Path,
    kind: str = "f16",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Write the new file `out`; sentences about it.

    kind: of the matrices, one of `TYPES`; vectors are float32 in all, and so are matrices as f16 whose
    rows q8_0's groups of 32 do not divide. InputError, before anything is written, for a model or a
    tokenizer that llama.cpp would compute otherwise; MachineError where gguf or room is missing.
    """
    check_asked(out, kind)
    gguf, architecture = library(), architecture_of(source)
    vocabulary = vocabulary_of(source.tokenizer(), source.vocabulary)
    names, extra = written_names(source), extra_tensors(source)
    tensor_type, file_type = TYPES[kind]
    shapes = dict(shapes_of(source, names))
    shapes |= {name: tuple(tensor.shape) for name, tensor in extra.items()}
    types = {name: type_of(gguf, name, shape, tensor_type) for name, shape in shapes.items()}
    bytes_of = {
        name: math.prod(gguf.quant_shape_to_byte_shape(shape, types[name]))
        for name, shape in shapes.items()
    }
    check_space(out.parent, sum(bytes_of.values()))
    partial = out.with_name(out.name + ".partial")
    writer = gguf.GGUFWriter(partial, architecture.name)
    put_metadata(writer, source, architecture)
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    put_vocabulary(writer, vocabulary)
    try:
        for name, shape in shapes.items():
            writer.add_tensor_info(name, shape, float, bytes_of[name], raw_dtype=types[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, (name, tensor) in enumerate(read(source, names, extra, architecture.paired), 1):
            values = tensor.float().contiguous().numpy()
            writer.write_tensor_data(gguf.quantize(values, types[name]))
            progress(done, len(shapes))
        writer.close()
        partial.replace(out)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    what = f"{out}: {architecture.name}, {kind}, {sum(bytes_of.values()):,} bytes of tensors"
    return [what, *vocabulary.notes]


def check_asked(out: Path, kind: str) -> None:
    """What can be refused before a model is opened."""
    if kind not in TYPES:
        raise InputError(f"--type is {', '.join(TYPES)}, not {kind!r}.")
    if out.exists():
        raise InputError(f"{out} is there already; name another file, or remove it.")
    if not out.absolute().parent.is_dir():
        raise InputError(f"There is no folder {out.absolute().parent} to write {out.name} to.")


def library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MachineError(
            "GGUF files are written by gguf, which is not installed; pip install gguf."
        ) from error
    return gguf


def shapes_of(
    source: Source, names: dict[str, tuple[str, ...]]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The shape of everything that is written of the source's tensors."""
    for name, written in names.items():
        first, *others = source.tensors[name].shape
        if len(written) > 1:
            others[0] //= len(written)
        yield from ((part, (first, *others)) for part in written)


def type_of(gguf: Any, name: str, shape: tuple[int, ...], kind: str) -> Any:
    """The type of one tensor: of vectors and routers float32, of rows that fill no groups f16."""
    if len(shape) == 1 or is_router(name):
        return gguf.GGMLQuantizationType.F32
    chosen = gguf.GGMLQuantizationType[kind]
    whole = shape[-1] % gguf.GGML_QUANT_SIZES[chosen][0] == 0
    return chosen if whole else gguf.GGMLQuantizationType.F16


def read(
    source: Source, names: dict[str, tuple[str, ...]], extra: dict[str, torch.Tensor], paired: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors by the names and in the order of the file. paired: whether it has channels side by
    side that are turned together.
    """
    for name, written in names.items():
        whole = source.read([name])[name]
        for part, tensor in zip(written, parts_of(whole, len(written)), strict=True):
            yield part, rotated(part, tensor, source.head_dim) if paired else tensor
    yield from extra.items()
