"""A source without some of its blocks, read through: what depth is cut by.

The blocks that stay keep their order and are numbered anew; what a config says of every block (kinds of
attention, windows, rotary embeddings, widths) stays with its block. Tensors may be others in the place
of the source's: what the blocks that went have done is folded into them (`repairing/folding.py`).
Everything that takes a source takes this one; `whole` is the source itself, of which shares are counted
and toward which is repaired.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch

from compressor.errors import InputError
from compressor.model.configs import OF_EVERY_BLOCK, config_of
from compressor.model.families import Family
from compressor.model.families.experts import FIRST, ONLY, STEP
from compressor.model.groups import GROUPS, counts
from compressor.model.part import Part
from compressor.model.per_layer import KEY, entries_of
from compressor.model.source import Source

# The first so many blocks attend to all, the others through a window.
BEFORE_WINDOWS = "max_window_layers"
# What makes a block's arithmetic depend on its number.
BY_NUMBER = "scale_attn_by_inverse_layer_idx"


class FewerBlocks(Part):
    """`whole` without the blocks `dropped`, numbers of its own. `numbers`: of the others, in it.

    folded: tensors in the place of the source's, by the names that they have here, as `read` has them;
    record: how they came about.
    InputError for blocks that it does not have, or has to keep: the first, into which nothing before it
    could take what it does, is one.
    """

    def __init__(
        self,
        whole: Source,
        dropped: Sequence[int],
        folded: Mapping[str, torch.Tensor] | None = None,
        record: Sequence[dict] = (),
    ):
        check_dropped(dropped, whole)
        self._dropped, self.folded = sorted(dropped), dict(folded or {})
        self.record = [*record]
        self._numbers = [b for b in range(whole.blocks) if b not in {*dropped}]
        super().__init__(whole, fewer(whole, self._numbers))
        self.origin = {name: name for name in whole.outer_tensors()}
        for block, number in enumerate(self._numbers):
            for name in whole.block_tensors(number):
                self.origin[self.block_name(block, name)] = whole.block_name(number, name)
        self.tensors = {name: whole.tensors[origin] for name, origin in self.origin.items()}

    @property
    def dropped(self) -> list[int]:
        return self._dropped

    @property
    def numbers(self) -> list[int]:
        return self._numbers

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        names = list(names)
        read = self.whole.read(self.origin[name] for name in names if name not in self.folded)
        return {
            name: self.folded[name] if name in self.folded else read[self.origin[name]]
            for name in names
        }

    def file_of(self, name: str) -> Path | None:
        return None if name in self.folded else self.whole.file_of(self.origin[name])


def without(source: Source, dropped: Sequence[int]) -> Source:
    """The source without these blocks; itself where there are none."""
    return FewerBlocks(source, dropped) if dropped else source


def check_dropped(dropped: Sequence[int], source: Source) -> None:
    """Refuse what are not numbers of blocks that can go."""
    if any(type(b) is not int for b in dropped) or len({*dropped}) < len(dropped):
        raise InputError(f"The dropped blocks {dropped!r} are not different block numbers.")
    outside = [b for b in dropped if not 0 < b < source.blocks]
    if outside:
        raise InputError(
            f"The block {outside[0]} cannot be dropped: {source.label} has {source.blocks} blocks, of "
            "which the first, 0, stays."
        )
    if not may_go(dropped, source):
        named = ", ".join(map(str, sorted(dropped)))
        raise InputError(
            f"The blocks {named} cannot be dropped together: of {source.label} no block would be left "
            "that has softmax attention, or none that has experts; keep one of them."
        )
    if dropped and source.config.get(BY_NUMBER):
        raise InputError(
            f"Blocks of {source.label} compute by their numbers ({BY_NUMBER}), so none can be dropped."
        )


def may_go(dropped: Sequence[int], source: Source) -> bool:
    """Whether of every group some units are left: the widths of a model without any mean nothing."""
    left = [units for b, units in enumerate(source.block_units) if b not in dropped]
    return all(counts(left, g) for g in GROUPS if counts(source.block_units, g))


def fewer(source: Source, numbers: Sequence[int]) -> dict:
    """What config.json says of the model with these blocks of the source alone."""
    family, written = source.family, deepcopy(dict(source.written_config))
    for name in {"num_hidden_layers", family.spellings.get("num_hidden_layers")} & {*written}:
        written[name] = len(numbers)
    for name in OF_EVERY_BLOCK:
        if of_blocks(written.get(name), source):
            written[name] = [written[name][b] for b in numbers]
    if isinstance(before := written.get(BEFORE_WINDOWS), int):
        written[BEFORE_WINDOWS] = sum(b < before for b in numbers) + max(0, before - source.blocks)
    if family.experts and (written.get(ONLY) or (written.get(STEP) or 1) != 1):
        written[ONLY] = [at for at, b in enumerate(numbers) if not source.families[b].experts]
        written[STEP] = 1
    if source.config.get(FIRST):
        written[FIRST] = sum(not source.families[b].experts for b in numbers)
    if entries := written.get(KEY):
        written[KEY] = entries_of(entries, numbers)
    return with_patterns(written, source, numbers, family)


def with_patterns(written: dict, source: Source, numbers: Sequence[int], family: Family) -> dict:
    """The same with a list of what a class makes of a pattern (every sixth block, say), wherever it
    would make something else of it for the blocks that are left.
    """
    had, has = source.model_config(), config_of(written, family)
    for name in OF_EVERY_BLOCK:
        kinds = getattr(had, name, None)
        if of_blocks(kinds, source):
            left = [kinds[b] for b in numbers]
            if getattr(has, name, None) != left:
                written[name] = left
    return written


def of_blocks(value, source: Source) -> bool:
    return isinstance(value, list) and len(value) == source.blocks
