"""A source in some channels of its residual stream alone, in its own width: what a model that has no
others is held against.

The embedding gives zeros in the other channels, and every norm that the stream, or what is added to it,
goes through computes over the kept channels alone, by its class's own forward, and gives zeros in the
others. So nothing reads what projections may still add there. A block that has no norm before its parts
reads the stream itself, but adds to it by norms.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from compressor.errors import VerificationError
from compressor.model.digest import digest
from compressor.model.fewer_channels import FewerChannels
from compressor.model.loading import blocks_of
from compressor.model.modules import assign, head_name, replaced_forward
from compressor.model.source import Source
from compressor.writing.padding import placed


@contextmanager
def only_channels(
    model: nn.Module, source: FewerChannels, written: Source, record: dict
) -> Iterator[None]:
    """While open, the model of the whole source computes what the view of it does, with what `record`
    says was changed outside the blocks.
    """
    places = source.places

    def over_kept(norm: Any, x: torch.Tensor) -> torch.Tensor:
        there, former = places.to(x.device), dict(norm.named_parameters(recurse=False))
        assign(norm, {name: p.detach()[there] for name, p in former.items()})
        shape = getattr(norm, "normalized_shape", None)
        if shape is not None:  # of torch's own
            norm.normalized_shape = (len(there),)
        try:
            kept = type(norm).forward(norm, x[..., there])
        finally:
            for name, parameter in former.items():
                setattr(norm, name, parameter)
            if shape is not None:
                norm.normalized_shape = shape
        return x.new_zeros(x.shape, dtype=kept.dtype).index_copy_(-1, there, kept)

    def only(_, args, given: torch.Tensor) -> torch.Tensor:
        there = places.to(given.device)
        return torch.zeros_like(given).index_copy_(-1, there, given[..., there])

    norms = [model.get_submodule(source.last_norm.removesuffix(".weight"))]
    for index, block in enumerate(blocks_of(model, source.family)):
        norms += [block.get_submodule(name) for name in source.stream_norms(index)]
    with ExitStack() as changes:
        changes.enter_context(replaced_forward(norms, over_kept))
        changes.enter_context(outer_lent(model, source, written, record))
        changes.enter_context(model.get_input_embeddings().register_forward_hook(only))
        yield


@contextmanager
def outer_lent(
    model: nn.Module, source: FewerChannels, written: Source, record: dict
) -> Iterator[None]:
    """While open, the model has the changed tensors outside the blocks, as wide as its own, and
    multiplies its embedding by as little as the narrower class does, if it does at all.
    """
    family = source.family
    tensors = written.read(record.get("tensors", []))
    if digest(tensors) != record.get("sha256"):
        raise VerificationError(
            f"The changed tensors outside the blocks in {written.path} are not those that were made: "
            f"{', '.join(tensors)}."
        )
    wide = {name: widened(tensor, name, source) for name, tensor in tensors.items()}
    if source.whole.tied and family.embedding in wide:
        wide[family.head] = wide[family.embedding]
    embedding: Any = model.get_input_embeddings()
    scale = embedding.embed_scale if family.embedded_by_width else None
    if scale is not None:
        embedding.embed_scale = torch.full_like(scale, source.hidden_size**0.5)
    renamed = {family.head: head_name(model)}
    wide = {renamed.get(name, name): tensor for name, tensor in wide.items()}
    former = {name: model.get_parameter(name) for name in wide}
    for name, parameter in former.items():
        dtype = torch.promote_types(wide[name].dtype, parameter.dtype)
        assign(model, {name: wide[name].to(parameter.device, dtype)})
    try:
        yield
    finally:
        if scale is not None:
            embedding.embed_scale = scale
        for name, parameter in former.items():
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, parameter)


def widened(tensor: torch.Tensor, name: str, source: FewerChannels) -> torch.Tensor:
    """A tensor of the view, by its whole name, in all channels: zeros in the others."""
    for axis in source.axes[name]:
        tensor = placed(tensor, axis, source.places, source.whole.hidden_size)
    return tensor
