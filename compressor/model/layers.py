"""One block as a module: narrower than its class makes it, and looked into while it runs."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from compressor.model.activations import Activations, states_of
from compressor.model.families import Family
from compressor.model.modules import assign, replaced_forward
from compressor.model.stream import BlockStream


def ffn_of(layer: nn.Module, family: Family, x: torch.Tensor) -> torch.Tensor:
    """What the FFN of a layer makes of the stream x, which its norm reads."""
    return family.feed_forward(layer, norm_of(layer, family, "ffn")(x))


def norm_of(layer: nn.Module, family: Family, group: str) -> nn.Module:
    """What the stream goes through before a group reads it."""
    norm = family.attention_norm if group == "attention" else family.ffn_norm
    return layer.get_submodule(norm) if norm else nn.Identity()


def added(layer: nn.Module, family: Family, group: str, projected: torch.Tensor) -> torch.Tensor:
    """What is added to the stream of what the output projection of a group gives."""
    norm = family.post_norms.get(group)
    projected = layer.get_submodule(norm)(projected) if norm else projected
    return projected * getattr(layer, family.added_times) if family.added_times else projected


def trained_of_ffn(family: Family) -> list[str]:
    """What a training moves of an FFN alone: of experts their stacks, and the router that chooses."""
    if family.experts:
        return [s.tensor for s in family.ffn if not s.tensor.endswith("bias")]
    return [s.tensor for s in family.ffn if s.tensor.endswith(".weight")]


@contextmanager
def second_half(layer: nn.Module, family: Family) -> Iterator[None]:
    """While open, the layer is what it does after its attention: called with the stream after that and
    with the one that the FFN's norm reads, it gives the stream after the layer.
    """

    def run(layer: nn.Module, after: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        return after + added(layer, family, "ffn", ffn_of(layer, family, read))

    with replaced_forward([layer], run):
        yield


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
