"""Cuts as folders, one writer a layout: which plans it can hold, and what it writes of them."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from itertools import repeat
from pathlib import Path

from compressor.config.layouts import (
    LAYOUTS,
    NAS,
    PADDED,
    PER_LAYER,
    UNIFORM,
    UNLIKE,
    check_layout_name,
)
from compressor.cutting.cut import cut_block
from compressor.errors import InputError
from compressor.model.families import FAMILIES, Family
from compressor.model.groups import are_alike, counts
from compressor.model.heads import choose_container, other_layouts
from compressor.model.per_layer import KEY, code_of, has_uniform, needs_code
from compressor.model.source import Source
from compressor.planning.plan import Plan
from compressor.writing.containers import layer_config, make_per_layer, patched_config, zeros_of
from compressor.writing.padding import padded_block, padded_places, padded_units
from compressor.writing.shards import SHARD_BYTES
from compressor.writing.writer import Block, Writer, empty, write_folder


class Cut(Writer):
    """A cut by a plan. `units` are the numbers of units that the config says, of each group.

    changes: of every block in order, the tensors that go out in place of the cut ones (a repair's), by
    their names inside it; they are asked for one block at a time.
    """

    layout: str

    def __init__(
        self,
        source: Source,
        plan: Plan,
        container: str = "auto",
        changes: Iterable[Block] | None = None,
    ):
        plan.check(source)
        self.source, self.plan, self.changes = source, plan, changes
        self.stacks = source.stacks  # whether experts go out one behind the other
        self.units = plan.widest()
        self.settle()
        coupled = source.family.couples_heads(source.config)  # zeros do not help there
        widths = plan.widths() if coupled else self.widths()
        groups = counts(widths, "attention")
        self.container = choose_container(source, groups, container, self.layout)
        self.zeros = zeros_of(source, self.container)
        self.built_by = FAMILIES.get(self.container, source.family)
        if needs_code(source.family, self.layout):
            self.code = code_of(self.built_by)

    def settle(self) -> None:
        """InputError for a plan that the layout cannot hold."""

    def widths(self) -> list[dict[str, int]]:
        """The units that blocks are written with."""
        return [self.units]

    def filled(self, index: int, block: Block) -> Block:
        """A cut block as the layout has it."""
        return block

    def empty_blocks(self) -> Iterator[Block]:
        for index in range(self.source.blocks):
            names = self.source.block_tensors(index)
            whole = {n: empty(self.source, self.source.block_name(index, n)) for n in names}
            yield self.finished(index, whole, {})

    def pieces(self) -> Iterator[Callable[[], Block]]:
        whole: Iterator[Block] = repeat({}, self.source.blocks)
        for index, changed in enumerate(whole if self.changes is None else self.changes):
            yield partial(self.read, index, changed)

    def read(self, index: int, changed: Block) -> Block:
        """What files hold of a block."""
        return self.finished(index, self.source.read_block(index), changed)

    def finished(self, index: int, whole: Block, changed: Block) -> Block:
        """What files hold of a block, of all that the source has of it."""
        source = self.source
        block = self.filled(index, cut_block(whole, source, self.plan.blocks[index], changed))
        named = {source.block_name(index, inner): tensor for inner, tensor in block.items()}
        stored = [source.in_files(name, tensor, self.stacks) for name, tensor in named.items()]
        return {n: t for part in stored for n, t in part.items()} | {
            source.block_name(index, n): t for n, t in self.zeros.items()
        }

    def config(self) -> dict:
        config = patched_config(self.source, self.units, self.container)
        if self.code:
            whole = whole_widths(self.plan, self.source)
            if self.layout != PADDED and not whole:  # else its blocks are all alike
                config["head_dim"] = self.source.head_dim
                config[KEY] = layer_config(self.plan, self.source)
            make_per_layer(config, self.built_by)
            if whole:  # what has a class of its own for the source (vLLM) takes it by that name
                config["architectures"] = [self.built_by.architecture]
        return config


class Uniform(Cut):
    """Blocks that are alike, of a class that every loader knows."""

    layout = UNIFORM

    def settle(self) -> None:
        widths = self.plan.widths()
        if not (has_uniform(self.source.family) or whole_widths(self.plan, self.source)):
            raise InputError(no_uniform(self.source.family))
        if not are_alike(widths):
            raise InputError(
                "The plan has blocks of different widths (global allocation, or protected blocks), "
                f"which no stock model class loads; make a plan without, or use {UNLIKE}."
            )


class PerLayer(Cut):
    """Blocks of their own widths, of a class that the folder brings."""

    layout = PER_LAYER

    def settle(self) -> None:
        check_built(self.source.family)

    def widths(self) -> list[dict[str, int]]:
        return self.plan.widths()


class Padded(Cut):
    """Blocks filled with zeros up to the widest of them, which computes the same."""

    layout = PADDED

    def settle(self) -> None:
        if self.source.family.experts and not self.source.family.whole_experts:
            raise InputError(
                "All blocks and experts of a mixture are of one width, so there is nothing to pad; use "
                "--layout uniform."
            )
        if self.source.family.experts:
            raise InputError(
                "An expert of zeros would be chosen all the same, so no cut of "
                f"{self.source.family.model_type} can be padded; use --layout uniform."
            )
        self.units = padded_units(self.plan, self.source)
        self.places = padded_places(self.plan, self.source)

    def filled(self, index: int, block: Block) -> Block:
        return padded_block(block, self.source, self.units, self.places[index])


def writer_of(
    source: Source,
    plan: Plan,
    layout: str = UNIFORM,
    container: str = "auto",
    changes: Iterable[Block] | None = None,
) -> Cut:
    """The writer of a plan; of blocks that may differ and turn out alike, the uniform one."""
    check_layout_name(layout)
    module, _, name = LAYOUTS[layout_of(plan, layout, source)].writer.partition(".")
    kind = getattr(import_module(f"compressor.writing.{module}"), name)
    return kind(source, plan, container, changes)


def write(
    source: Source,
    plan: Plan,
    folder: Path,
    layout: str = UNIFORM,
    container: str = "auto",
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
    changes: Iterable[Block] | None = None,
) -> str:
    """Cut `source` by `plan` into the new folder; returns the container's model type."""
    writer = writer_of(source, plan, layout, container, changes)
    write_folder(writer, folder, shard_bytes, progress)
    return writer.container


def layout_of(plan: Plan, layout: str, source: Source) -> str:
    """What a plan is written as: `per-layer` and `nas` are `uniform` where all blocks are alike."""
    equal = are_alike(plan.widths())
    equal = equal and (has_uniform(source.family) or whole_widths(plan, source))
    return UNIFORM if layout in (PER_LAYER, NAS) and equal else layout


def whole_widths(plan: Plan, source: Source) -> bool:
    """Whether all blocks that are left are as wide as those of the source's own class."""
    whole = {"attention": source.heads, "ffn": source.config[source.family.ffn_width_key]}
    if source.family.experts:
        whole["ffn"] = source.units["ffn"]
    if not source.family.alibi:
        whole["attention"] = source.kv_heads
    return all(n in (0, whole[group]) for width in plan.widths() for group, n in width.items())


def no_uniform(family: Family) -> str:
    return (
        f"transformers' class of {family.model_type} always has {family.ffn_per_hidden} x hidden FFN "
        "channels and as many heads as its hidden size has room for, and its slopes (ALiBi) are those "
        "of all heads, so no cut of its widths can be written in the uniform layout; use --layout "
        "per-layer (loads with code of its own) or padded (zeros, to evaluate it), or --drop-blocks "
        "alone (whole blocks)."
    )


def check_built(family: Family) -> None:
    if family.inside or not family.own_widths:
        what = f"inside of a {family.inside}" if family.inside else f"of {family.model_type}"
        raise InputError(
            f"There is no code for blocks {what} that differ in width; {other_layouts(family)}."
        )
