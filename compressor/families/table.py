"""What a family's table says: which tensors a unit owns, and how the family writes its widths."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Slice:
    """The part of one tensor that belongs to a unit: `axis` is cut into equal pieces, one a unit.

    `tensor` is the name inside a block. A missing tensor is an error unless `optional` (biases).
    """

    tensor: str
    axis: int
    optional: bool = False


@dataclass(frozen=True)
class Family:
    """One model type, as data.

    `ffn` and `attention` list what a unit of each group owns; the last entry of each is the output
    projection, whose columns the unit feeds. Module names are relative to a block.
    """

    model_type: str
    architecture: str
    ffn: tuple[Slice, ...]
    attention: tuple[Slice, ...]
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    attention_norm: str = "input_layernorm"
    ffn_norm: str = "post_attention_layernorm"
    ffn_width_key: str = "intermediate_size"
    heads_key: str = "num_attention_heads"
    kv_heads_key: str = "num_key_value_heads"
    heads_divide_hidden: bool = False
    # A family of the same arithmetic that accepts any head count, and what its config needs.
    container: str | None = None
    container_config: dict = field(default_factory=dict)

    def groups(self) -> dict[str, tuple[Slice, ...]]:
        return {"attention": self.attention, "ffn": self.ffn}

    def readers(self) -> list[list[str]]:
        """The projections' weights by what they read: q, k, v together, o, gate and up, down."""
        return [
            [s.tensor for s in slices if s.axis == axis and s.tensor.endswith(".weight")]
            for slices in self.groups().values()
            for axis in (0, 1)
        ]

    def projections(self) -> list[str]:
        """The weights that a cut touches, by their names inside a block."""
        return [name for together in self.readers() for name in together]

    def output(self, group: str) -> str:
        """The weight whose columns the units of a group feed, e.g. `mlp.down_proj.weight`."""
        return next(s.tensor for s in self.groups()[group] if s.axis == 1)


GATED_FFN = (
    Slice("mlp.gate_proj.weight", 0),
    Slice("mlp.gate_proj.bias", 0, optional=True),
    Slice("mlp.up_proj.weight", 0),
    Slice("mlp.up_proj.bias", 0, optional=True),
    Slice("mlp.down_proj.weight", 1),
)

GROUPED_ATTENTION = (
    Slice("self_attn.q_proj.weight", 0),
    Slice("self_attn.q_proj.bias", 0, optional=True),
    Slice("self_attn.k_proj.weight", 0),
    Slice("self_attn.k_proj.bias", 0, optional=True),
    Slice("self_attn.v_proj.weight", 0),
    Slice("self_attn.v_proj.bias", 0, optional=True),
    Slice("self_attn.o_proj.weight", 1),
)
