"""What a family's table says: which tensors a unit owns, and where the parts of a block are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compressor.model.groups import GROUPS

if TYPE_CHECKING:
    from compressor.model.families.experts import Experts


@dataclass(frozen=True)
class Slice:
    """The part of one tensor that belongs to the units of a group, along the axis that is cut.

    tensor: its name inside a block, as `Linear` has it: [out, in]. A missing one is an error unless
    `optional` (biases). owns: which channels of the axis are a unit's, a letter each kind,

        q  of the query heads of a KV group      k, v  of its key and its value head
        g  the same, each head's queries being followed by as many gates of what it gives
        c  one channel of the FFN

    in the tensor's order. Letters together are side by side for every unit (`qkv`: all of unit 0,
    all of unit 1, ...); those apart are sections, each with all units (`q k v`: the queries of all
    units, then the keys, then the values).
    """

    tensor: str
    axis: int
    owns: str
    optional: bool = False

    @property
    def module(self) -> str:
        return self.tensor.rpartition(".")[0]

    def size(self, sizes: Mapping[str, int]) -> int:
        """Channels that one unit owns; sizes: channels of each letter."""
        return sum(sizes[letter] for letter in self.owns if letter != " ")

    def matrix(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor with what units own along `axis` of a matrix; of a stack a row each."""
        return tensor.flatten(1) if tensor.ndim > 2 else tensor

    def unmatrix(self, matrix: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """A matrix of some units, in the form of the whole tensor."""
        return matrix.unflatten(1, like.shape[1:]) if like.ndim > 2 else matrix

    @property
    def key(self) -> str:
        """What the tensors that units own together are summed up under: their module."""
        return self.module

    def channels(self, kept: Sequence[int], units: int, sizes: Mapping[str, int]) -> torch.Tensor:
        """Positions along the axis of what the kept ones of so many units own, in order: int64."""
        positions, begin = [], 0
        for section in self.owns.split():
            width = sum(sizes[letter] for letter in section)
            places = torch.as_tensor(kept, dtype=torch.long)[:, None] * width + torch.arange(width)
            positions.append(begin + places.flatten())
            begin += units * width
        return torch.cat(positions)

    def pieces(
        self, values: torch.Tensor, units: int, sizes: Mapping[str, int]
    ) -> list[torch.Tensor]:
        """Values [..., channels] by what owns them: for every letter [..., units, channels of it]."""
        widths = [[sizes[letter] for letter in section] for section in self.owns.split()]
        sections = values.split([units * sum(section) for section in widths], -1)
        return [
            piece
            for section, widths_of in zip(sections, widths, strict=True)
            for piece in section.unflatten(-1, (units, -1)).split(widths_of, -1)
        ]


@dataclass(frozen=True)
class Container:
    """A model type whose class computes what a family's does, and takes heads that the family's own,
    or a serving engine's class of it, does not.

    settings: what its config says beside the family's. without: the family's settings that mean nothing
    to it. zeros: biases [hidden] that its class has in every block and the family has not, by their
    names inside a block; they are written as zeros. biases: whether its class has those of q, k and v.
    unlike: of a config, the words that say why the class does not compute the same.
    """

    model_type: str
    settings: Mapping[str, object] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    zeros: tuple[str, ...] = ()
    biases: bool = False
    unlike: Callable[[Mapping], str | None] = lambda config: None


@dataclass(frozen=True)
class Family:
    """One model type, as data.

    `ffn` and `attention` list what a unit of each group owns; the last weight of each is the output
    projection's, whose columns the unit feeds. Module names are relative to a block, settings are
    those of a standard config (`standard`).
    """

    model_type: str
    architecture: str
    ffn: tuple[Slice, ...]
    attention: tuple[Slice, ...]
    # Files hold the matrices of both groups as [in, out]. What is read of them is as `Linear` has it,
    # and so are the modules that a block is run with.
    transposed: bool = False
    unpacked: str | None = None  # the class of its linear modules, where it is not torch's own
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    # What the FFN's inner channels are made by: up alone, or gated, in two modules or in one, which
    # then has the gate's channels first.
    up: str = "mlp.up_proj"
    gate: str | None = "mlp.gate_proj"
    # Where experts are, if these are the units of the FFN.
    experts: "Experts | None" = None
    # The norms that both parts read the stream through; None where they read the stream itself.
    attention_norm: str | None = "input_layernorm"
    ffn_norm: str | None = "post_attention_layernorm"
    norm_offset: float = 0.0  # what norms add to their weights
    embedded_by_width: bool = False  # whether the embedding is times the root of the hidden size
    # Norms that what a group's output projection gives goes through before it is added.
    post_norms: Mapping[str, str] = field(default_factory=dict)
    # The setting, and the attribute of a block, by which it multiplies what it adds to the stream.
    added_times: str | None = None
    # The FFN of a normed stream, before such a norm.
    feed_forward: Callable[[nn.Module, torch.Tensor], torch.Tensor] = lambda layer, x: layer.mlp(x)
    in_a_tuple: bool = False  # what a block returns, for the model that it is in
    # Has a block compute with the widths of its weights, where its modules keep numbers of heads; it is
    # told which of its KV groups are left.
    fit: Callable[[nn.Module, Sequence[int]], None] = lambda layer, kept: None
    # What of this table is otherwise for some configs of the type.
    form: Callable[[Mapping], Mapping[str, Any]] = lambda config: {}
    # And what of it is otherwise in one block of a model, whose blocks may be of several kinds.
    kind: Callable[[Mapping, int], Mapping[str, Any]] = lambda config, block: {}
    # The groups that a block of another kind has no units of, and so keeps whole; `ffn` and `attention`
    # list what it has in their place, as far as it is looked at.
    whole: tuple[str, ...] = ()
    # Of a config, how many numbers a block that has no keys and values keeps of a sequence.
    state: Callable[[Mapping], int] = lambda config: 0
    # And of one whose keys and values are latent, how many it keeps of a token, and by how many products
    # a token attends to a position.
    latent: Callable[[Mapping], tuple[int, int]] | None = None
    # What the names of heads that predict further tokens (MTP) begin with, and the setting that counts
    # their blocks. They are of the uncut model, so they are left out.
    foresees: tuple[str | tuple[str, ...], str] | None = None
    # Of the config of a model that is of the type, but not of this table, a sentence that says why.
    unlike: Callable[[Mapping], str | None] = lambda config: None
    # The setting that has the FFN read the stream that the attention reads, if there is one.
    parallel_key: str | None = None
    ffn_width_key: str = "intermediate_size"
    heads_key: str = "num_attention_heads"
    kv_heads_key: str = "num_key_value_heads"
    # A config's own names of standard settings, and settings that it does not have.
    spellings: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, object] = field(default_factory=dict)
    ffn_per_hidden: int | None = None  # the FFN's width where the config does not say
    not_read: tuple[str, ...] = ("rotary_emb.inv_freq",)  # ends of names of buffers in old files
    in_float32: tuple[str, ...] = ()  # ends of names of what the class computes with in float32
    heads_divide_hidden: bool = False
    # Why a config of this kind is refused with any other number of heads; and why no block of such a
    # model computes the same without some of its heads.
    keeps_heads: Callable[[Mapping], str | None] = lambda config: None
    couples_heads: Callable[[Mapping], str | None] = lambda config: None
    # vLLM's class has hidden / heads channels a head, whatever head_dim says; transformers' heeds it.
    served_by_division: bool = False
    served_ffn: int | None = None  # vLLM's has this many times the hidden size of FFN channels
    heads_fixed: bool = False  # the class of the family has hidden / heads channels a head, always
    ffn_fixed: bool = False  # and `ffn_per_hidden` times the hidden size
    # Heads have slopes (ALiBi), so a block says which of the first heads it has, and the package's own
    # class runs it. `stock`: transformers has a class too, of the widths that a source has.
    alibi: bool = False
    stock: bool = True
    own_widths: bool = True  # code is at hand for blocks of different widths
    inside: str | None = None  # the type of the larger model that the model is part of
    # The arithmetic is Llama's, but for windows and some rotary embeddings, and so are the tensors, but
    # for these, which hold several of Llama's one after the other.
    llama_like: bool = False
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # What is written in the place of the family's own type where that does not take the heads.
    container: Container | None = None
    per_layer_settings: dict = field(default_factory=dict)  # what a config of unequal blocks needs

    @property
    def cuts_heads(self) -> bool:
        """Whether some class builds blocks of this family with fewer heads."""
        return self.alibi or not self.heads_fixed

    def serves_heads(self, hidden: int, counts: Sequence[int], head_dim: int) -> bool:
        """Whether vLLM's class has heads of so many channels, in each of these numbers."""
        return not self.served_by_division or all(hidden // n == head_dim for n in counts)

    @property
    def whole_experts(self) -> bool:
        """Whether a unit of the FFN is an expert."""
        return self.experts is not None and not self.experts.split

    def of(self, config: Mapping) -> "Family":
        """The table as it is for this config."""
        return replace(self, **self.form(config))

    def in_block(self, config: Mapping, block: int) -> "Family":
        """The table as it is for this block of a model with this config."""
        return replace(self, **self.kind(config, block))

    def dtype_of(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """What a tensor is computed with in a model that is computed in `dtype`."""
        exact = name.endswith(self.in_float32)
        return torch.promote_types(dtype, torch.float32) if exact else dtype

    def groups(self) -> dict[str, tuple[Slice, ...]]:
        """What units own, by group; without the groups that are whole."""
        return {group: getattr(self, group) for group in GROUPS if group not in self.whole}

    def readers(self, *groups: str) -> list[list[str]]:
        """The projections' weights by what they read: q, k, v together, o, gate and up, down; of
        these groups alone, or of all. Experts have none: they are cut whole.
        """
        return [
            [s.tensor for s in slices if s.axis == axis and s.tensor.endswith(".weight")]
            for group, slices in self.groups().items()
            if (not groups or group in groups) and not (self.experts and group == "ffn")
            for axis in (0, 1)
        ]

    def projections(self, *groups: str) -> list[str]:
        """The weights that a cut touches, by their names inside a block; of these groups, or of all."""
        return [name for together in self.readers(*groups) for name in together]

    def is_transposed(self, name: str, shape: Sequence[int]) -> bool:
        """Whether files hold the tensor of this whole name as [in, out]."""
        ends = tuple("." + part.tensor for part in (*self.ffn, *self.attention))
        return self.transposed and len(shape) == 2 and name.endswith(ends)

    def entered(self, group: str) -> str:
        """The module of a block that the stream enters on its way to a group; a norm, if it has one."""
        if group == "attention":
            return self.attention_norm or ""  # the block itself
        return self.ffn_norm or self.up.rpartition(".")[0]

    def output(self, group: str) -> str:
        """The weight whose columns the units of a group feed, e.g. `mlp.down_proj.weight`."""
        return next(s.tensor for s in getattr(self, group) if s.axis == 1)

    def gate_and_up(
        self, gate: torch.Tensor, up: torch.Tensor, axis: int = -1
    ) -> tuple[torch.Tensor, ...]:
        """Gate and up of what their modules give or hold, which is twice the same for one module."""
        return up.chunk(2, axis) if self.gate == self.up else (gate, up)

    def standard(self, config: Mapping) -> dict:
        """The config with every setting under its standard name."""
        settings = {**self.constants, **config}
        for name, spelling in self.spellings.items():
            if config.get(spelling) is not None:
                settings[name] = config[spelling]
        if self.ffn_per_hidden and (self.ffn_fixed or not settings.get(self.ffn_width_key)):
            settings[self.ffn_width_key] = self.ffn_per_hidden * settings.get("hidden_size", 0)
        return settings

    def spelled(self, config: Mapping, name: str) -> str:
        """What a config calls a standard setting."""
        spelling = self.spellings.get(name, name)
        return name if name in config and spelling not in config else spelling

    def parallel(self, config: Mapping) -> bool:
        """Whether the FFN reads the stream before the attention has added to it."""
        return self.parallel_key is not None and bool(config.get(self.parallel_key, True))


def inward(module: str, owns: str) -> tuple[Slice, Slice]:
    """The weight and the bias of a projection whose output channels units own."""
    return Slice(f"{module}.weight", 0, owns), Slice(f"{module}.bias", 0, owns, optional=True)


GATED_FFN = (
    *inward("mlp.gate_proj", "c"),
    *inward("mlp.up_proj", "c"),
    Slice("mlp.down_proj.weight", 1, "c"),
)

FOURFOLD_FFN = (*inward("mlp.dense_h_to_4h", "c"), Slice("mlp.dense_4h_to_h.weight", 1, "c"))

GROUPED_ATTENTION = (
    *inward("self_attn.q_proj", "q"),
    *inward("self_attn.k_proj", "k"),
    *inward("self_attn.v_proj", "v"),
    Slice("self_attn.o_proj.weight", 1, "q"),
)
