"""Numbers of a model that follow from its config: widths, heads, and the units that can go."""

from functools import cached_property

from compressor.model.families import Family
from compressor.model.groups import GROUPS
from compressor.model.per_layer import HEADS, in_every_block


class Geometry:
    """What `config`, settings under their standard names, and `family` say of every block."""

    config: dict
    family: Family

    @property
    def blocks(self) -> int:
        return self.config["num_hidden_layers"]

    @property
    def hidden_size(self) -> int:
        return self.config["hidden_size"]

    @property
    def heads(self) -> int:
        return self.config[self.family.heads_key]

    @property
    def kv_heads(self) -> int:
        return self.config.get(self.family.kv_heads_key) or self.heads

    @property
    def head_dim(self) -> int:
        return self.config.get("head_dim") or self.hidden_size // self.heads

    @property
    def positions(self) -> int | None:
        """How many tokens a sequence can have, where the config says so."""
        limit = self.config.get("max_position_embeddings")
        return limit if limit and limit > 0 else None

    @property
    def window(self) -> int | None:
        """How many tokens blocks attend to, where that is fewer than a sequence can have."""
        window = self.config.get("sliding_window")
        return window if window and window < (self.positions or window + 1) else None

    @property
    def queries_per_group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def channel_sizes(self) -> dict[str, int]:
        """Channels of a unit of each kind, as a `Slice` names them."""
        queries = self.queries_per_group * self.head_dim
        return {"q": queries, "g": 2 * queries, "k": self.head_dim, "v": self.head_dim, "c": 1}

    @cached_property
    def families(self) -> list[Family]:
        """The family's table as every block has it."""
        return [self.family.in_block(self.config, block) for block in range(self.blocks)]

    @property
    def mixed(self) -> bool:
        """Whether blocks are of several kinds."""
        return any(family.whole for family in self.families)

    @property
    def units(self) -> dict[str, int]:
        """Prunable units of one block, KV groups and FFN channels: the most that any has."""
        blocks = self.block_units
        return {group: max(units[group] for units in blocks) for group in blocks[0]}

    @cached_property
    def block_units(self) -> list[dict[str, int]]:
        """Prunable units of every block; none of what is of another kind there."""
        family = self.family
        groups = in_every_block(self.config, family.kv_heads_key, self.blocks)
        channels = in_every_block(self.config, family.ffn_width_key, self.blocks)
        if family.experts and family.experts.split:
            channels = [count * self.config[family.experts.width_key] for count in channels]
        found = [
            {"attention": kv_groups or self.heads, "ffn": ffn}
            for kv_groups, ffn in zip(groups, channels, strict=True)
        ]
        return [
            {group: 0 if group in table.whole else units[group] for group in GROUPS}
            for units, table in zip(found, self.families, strict=True)
        ]

    @property
    def ffn_parts(self) -> int:
        """Equal parts of a block's FFN units, of which as many stay: experts, of their channels, or
        groups that a router sorts experts into.
        """
        experts = self.family.experts
        return experts.equal_parts(self.config) if experts else 1

    @cached_property
    def heads_left(self) -> list[list[int]]:
        """Which of the heads that the config counts every block has; a slope (ALiBi) goes with each."""
        chosen = in_every_block(self.config, HEADS, self.blocks)
        return [
            heads or [*range(units["attention"] * self.queries_per_group)]
            for heads, units in zip(chosen, self.block_units, strict=True)
        ]
