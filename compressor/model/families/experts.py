"""Mixtures of experts, as data: the FFN of a block is many, of which a router chooses a few a token.

A unit of the group `ffn` is a whole expert or, of a table that is `split`, one channel of one expert:
number c of expert e is unit e * width + c. transformers' modules hold the experts of a block one behind
the other in a tensor of three axes, and a row of the router's weight for each; most files hold every
expert by itself, under names that `Experts` has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from compressor.model.families.table import GATED_FFN, Family, Slice

GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


@dataclass(frozen=True)
class Stack(Slice):
    """A stack of experts as a matrix with rows for every channel of every expert. `owns` has a letter
    for each of an expert's matrices that lie one below the other (gate, up), or that of the one whose
    columns are the channels (down).
    """

    def matrix(self, tensor: torch.Tensor) -> torch.Tensor:
        if len(self.owns) == 1:
            return tensor.transpose(1, 2).flatten(0, 1)
        return tensor.unflatten(1, (len(self.owns), -1)).transpose(1, 2).flatten(0, 2)

    def unmatrix(self, matrix: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        each = matrix.unflatten(0, (len(like), -1))
        if len(self.owns) == 1:
            return each.transpose(1, 2).contiguous()
        return each.unflatten(1, (-1, len(self.owns))).transpose(1, 2).flatten(1, 2)

    @property
    def key(self) -> str:
        return self.tensor


WHOLE_EXPERTS = (
    Slice(GATE_UP, 0, "c"),
    Slice(DOWN, 0, "c"),
    Slice("mlp.gate.weight", 0, "c"),
)
CHANNELS_OF_EXPERTS = (Stack(GATE_UP, 0, "cc"), Stack(DOWN, 0, "c"))


@dataclass(frozen=True)
class Experts:
    """Where the experts of a block are: names inside it.

    parts: of each stacked tensor, what files with single experts have of one, {} being its number;
    several parts lie one below the other. renamed: what such files call other tensors. router: the
    module that chooses, with a row for every expert. stack: the module that runs what it chose,
    with the output projections `down`. shared: the output projection of an expert that every token
    passes, where there is one. all: the module that gives the sum of what all give.
    per_token: the setting that says how many are chosen. counted: the settings that say how many there
    are, to the versions of transformers that read a config. width_key: the one that says how many
    channels an expert has. split: whether these are the units.
    shared_count: the setting that says how many experts wide the shared one is. groups: of a config,
    into how many equal groups the router sorts experts, to choose among some groups alone, and how many
    experts of each have to stay. bias: what it adds to scores where it chooses, and not where it weighs.
    """

    parts: Mapping[str, tuple[str, ...]]
    renamed: Mapping[str, str] = field(default_factory=dict)
    router: str = "mlp.gate"
    stack: str = "mlp.experts"
    down: str = DOWN
    shared: str | None = None
    all: str = "mlp"
    per_token: str = "num_experts_per_tok"
    counted: tuple[str, ...] = ("num_experts",)
    width_key: str = "intermediate_size"
    split: bool = False
    shared_count: str | None = None
    groups: Callable[[Mapping], tuple[int, int]] | None = None
    bias: str | None = None

    def equal_parts(self, config: Mapping) -> int:
        """Parts of a block's units of which as many stay: experts, of channels, or groups of experts."""
        if self.split:
            return config[self.counted[0]]
        return self.groups(config)[0] if self.groups else 1

    def fewest(self, config: Mapping) -> int:
        """The fewest experts that a block can have."""
        count, least = self.groups(config) if self.groups else (1, 0)
        return max(count * least, config[self.per_token])

    def of_shared(self, config: Mapping) -> int | None:
        """The channels of a shared expert that is so many experts wide."""
        count = self.shared_count and config[self.shared_count]
        return config[self.width_key] * count if count else None


LIKE_QWEN = Experts(
    parts={
        GATE_UP: tuple(f"mlp.experts.{{}}.{name}_proj.weight" for name in ("gate", "up")),
        DOWN: ("mlp.experts.{}.down_proj.weight",),
    },
    width_key="moe_intermediate_size",
)


LIKE_QWEN_SHARED = replace(LIKE_QWEN, shared="mlp.shared_expert.down_proj.weight")

# The settings that say which blocks have one FFN and no experts: their numbers, and every how many-th
# block has experts, counted from 1; or how many are before those that have any.
ONLY, STEP, FIRST = "mlp_only_layers", "decoder_sparse_step", "first_k_dense_replace"


def is_dense(config: Mapping, block: int) -> bool:
    listed = block in (config.get(ONLY) or ()) or (block + 1) % (config.get(STEP) or 1) > 0
    return listed or block < (config.get(FIRST) or 0)


def kind(config: Mapping, block: int) -> Mapping[str, Any]:
    """What is otherwise in a block with one FFN, which stays whole, as its units are not experts."""
    return DENSE if is_dense(config, block) else {}


def unlike(config: Mapping) -> str | None:
    """Of a config some of whose blocks may have no experts, a sentence where it cannot be cut."""
    if all(is_dense(config, block) for block in range(config.get("num_hidden_layers") or 0)):
        return f"none of its blocks has experts ({ONLY}, {STEP})"
    return too_few(config)


def too_few(config: Mapping, counted: str = "num_experts") -> str | None:
    """Of a config that routes tokens to more experts than there are, a sentence that says so."""
    experts, routed = config.get(counted) or 0, config.get("num_experts_per_tok") or 0
    if routed <= experts:
        return None
    return f"every token is routed to {routed} experts (num_experts_per_tok), and a block has {experts}"


def split(family: Family) -> Family:
    """The table with the channels of experts as the units of the FFN."""
    return replace(family, ffn=CHANNELS_OF_EXPERTS, experts=replace(family.experts, split=True))


def fit(layer: nn.Module, kept: Sequence[int]) -> None:
    """Experts and router of a block compute with the number of experts that they were made with."""
    mlp: Any = layer.mlp
    for module in (mlp.experts, mlp.gate):
        module.num_experts = len(mlp.gate.weight)


DENSE: dict[str, Any] = {
    "ffn": GATED_FFN,
    "whole": ("ffn",),
    "experts": None,
    "fit": lambda layer, kept: None,
}
# What makes a table one of experts, beside what its types have of their own.
MIXTURE: dict[str, Any] = {
    "ffn": WHOLE_EXPERTS,
    "experts": LIKE_QWEN,
    "unlike": too_few,
    "ffn_width_key": "num_experts",
    "own_widths": False,
    "fit": fit,
}
# The same where some blocks may have one FFN.
WITH_DENSE = MIXTURE | {"kind": kind, "unlike": unlike}
