"""A cut as a model in memory, of the very tensors that its folder would have."""

from accelerate import init_empty_weights
from torch import nn

from compressor.model.configs import config_of
from compressor.model.modules import assign, head_name
from compressor.model.per_layer import model_of
from compressor.writing.cuts import Cut
from compressor.writing.writer import Block


def build(writer: Cut) -> nn.Module:
    """The model of a cut, in eval mode on the CPU; its tensors are copies that may be trained."""
    source, family = writer.source, writer.built_by
    config = config_of(writer.config(), family)
    with init_empty_weights(include_buffers=False):
        model = model_of(config, family, source.dtype)
    outer = source.read(source.outer_tensors())
    if not source.tied:
        outer[head_name(model)] = outer.pop(source.family.head)
    assign(model, copies(outer))
    writer.stacks = True
    for block in writer.blocks():
        assign(model, copies(block))
    if source.tied:
        model.tie_weights()
    return model.eval().requires_grad_()


def copies(tensors: Block) -> Block:
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
