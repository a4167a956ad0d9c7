"""A cut as a model in memory, of the very tensors that its folder would have."""

import torch
from accelerate import init_empty_weights
from torch import nn

from compressor.model.configs import config_of
from compressor.model.per_layer import model_of
from compressor.writing.cuts import Cut


def build(writer: Cut) -> nn.Module:
    """The model of a cut, in eval mode on the CPU; its tensors are copies that may be trained."""
    source, family = writer.source, writer.built_by
    config = config_of(writer.config(), family)
    with init_empty_weights(include_buffers=False):
        model = model_of(config, family, source.dtype)
    head = model.get_output_embeddings()
    for name in source.outer_tensors():
        put(model, head if name == source.family.head else None, name, source.read([name])[name])
    for block in writer.blocks():
        for name in list(block):
            put(model, None, name, block.pop(name))
    if source.tied:
        model.tie_weights()
    return model.eval()


def put(model: nn.Module, owner: nn.Module | None, name: str, tensor: torch.Tensor) -> None:
    """Make a copy of the tensor a parameter, of the module that its name says or of another one."""
    module, _, leaf = name.rpartition(".")
    value = nn.Parameter(tensor.contiguous().clone())
    setattr(owner or model.get_submodule(module), leaf, value)
