"""One block as a module: narrower than its class makes it, and looked into while it runs."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from compressor.model.activations import Activations, states_of
from compressor.model.families import Family
from compressor.model.modules import assign, replaced_forward
from compressor.model.stream import BlockStream


class SecondHalf(nn.Module):
    """What a layer does after its attention; its parameters are the layer's (`layer.NAME`)."""

    def __init__(self, layer: nn.Module, family: Family):
        super().__init__()
        self.layer, self.family = layer, family

    def forward(self, after: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """The stream after the layer, from that after its attention and what the FFN's norm reads."""
        norm, post = self.family.ffn_norm, self.family.post_norms.get("ffn")
        out = self.family.feed_forward(self.layer, self.layer.get_submodule(norm)(read))
        return after + (self.layer.get_submodule(post)(out) if post else out)


def narrowed(
    layer: nn.Module, tensors: dict[str, torch.Tensor], family: Family, groups: Sequence[int]
) -> nn.Module:
    """A copy of an empty layer with a cut block's tensors, those of these KV groups."""
    copied = copy.deepcopy(layer)
    assign(copied, tensors)
    family.fit(copied, groups)
    return copied


def passed(
    stream: BlockStream, layer: nn.Module, states: Activations, calls: Sequence[tuple]
) -> Activations:
    """The stream after a layer, in place of that before it; calls: the layer's, of every batch."""
    out = Activations(stream.place)
    for i, (args, keywords) in enumerate(calls):
        out.put(i, states_of(layer(states.get(i, stream.device), *args, **keywords)))
    states.discard()
    return out


class Captured(Exception):
    """Carries what a module was called with out of the forward it stands in."""


def captured(module: nn.Module, run: Callable[[], object]) -> torch.Tensor:
    """What `module` is called with while run() runs, which ends there."""

    def take(_, x):
        raise Captured(x)

    with replaced_forward([module], take):
        try:
            run()
        except Captured as capture:
            return capture.args[0]
    raise AssertionError(f"{type(module).__name__} was not called")
