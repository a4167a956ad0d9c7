"""The units of one block: what they own, and the block without some of them."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from compressor.model.experts import only_channels, only_experts
from compressor.model.families import Family
from compressor.model.source import Source


@dataclass(frozen=True)
class BlockGeometry:
    """What a method needs to know of a block: sizes, and where things are. `units` has the groups that
    the block has units of.
    """

    family: Family
    units: dict[str, int]
    sizes: dict[str, int]  # channels of a unit of each kind, as a `Slice` names them
    parallel: bool  # whether the FFN reads what the attention reads
    activation: str
    norm_eps: float
    times: (
        float  # what output projections give is multiplied by this before it is added to the stream
    )

    @classmethod
    def of(cls, checkpoint: Source, block: int = 0) -> "BlockGeometry":
        """Of one block: its table and its `units` may be others than those of other blocks."""
        return cls(
            family=checkpoint.families[block],
            units={group: n for group, n in checkpoint.block_units[block].items() if n},
            sizes=checkpoint.channel_sizes,
            parallel=checkpoint.family.parallel(checkpoint.config),
            activation=checkpoint.config.get("hidden_act", "silu"),
            norm_eps=checkpoint.config.get("rms_norm_eps", 1e-6),
            times=checkpoint.config.get(checkpoint.family.added_times, 1.0),
        )

    def channels(self, group: str) -> int:
        """Channels of the output projection's input that one unit owns."""
        return self.sizes["q" if group == "attention" else "c"]

    def output_module(self, group: str) -> str:
        return self.family.output(group).removesuffix(".weight")


@contextmanager
def only_units(layer: nn.Module, geometry: BlockGeometry, kept: Mapping[str, Sequence[int]]):
    """While open, `layer` computes what it would with the units `kept[group]` alone.

    A removed unit contributes nothing to its output projection, so zeroing its channels there is
    exactly the cut. An expert is removed by hiding it from its router.
    """
    with ExitStack() as handles:
        for group, units in kept.items():
            if not units and group not in geometry.units:
                continue
            if group == "ffn" and (experts := geometry.family.experts):
                only = only_channels if experts.split else only_experts
                handles.enter_context(only(layer, experts, units))
                continue
            width = geometry.channels(group)
            left = {*range(geometry.units[group])} - {*units}
            lost = torch.tensor(sorted(left), dtype=torch.long)
            dead = (lost[:, None] * width + torch.arange(width)).flatten()

            def hook(_, args, dead=dead):
                return (args[0].index_fill(-1, dead.to(args[0].device), 0.0), *args[1:])

            module = layer.get_submodule(geometry.output_module(group))
            handles.enter_context(module.register_forward_pre_hook(hook))
        yield
