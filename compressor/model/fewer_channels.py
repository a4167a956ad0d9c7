"""A source with some channels of its residual stream alone, read through: how the hidden size is cut.

The same channels are left everywhere: in the embedding, the head and the norms, in what projections read
of the stream and in what they add to it. Which axes of which tensors these are, the model's class says
itself: it is built without memory in both widths, and what differs between them is the stream.

Norms then compute over the channels that are left, which is part of what such a model is. A class that
multiplies the embedding by the root of the hidden size would multiply it by less; what that takes away
is put into the embedding, and taken out of the last norm where the head is the embedding, too.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import cached_property
from math import lcm
from pathlib import Path
from types import SimpleNamespace

import torch

from compressor.errors import InputError, in_a_line
from compressor.model.configs import config_of, other_type
from compressor.model.empty_model import empty_model
from compressor.model.part import Part
from compressor.model.source import Source

STEP = 8  # channels: of a multiple of 16 bytes in half precision matrix products are fast


class FewerChannels(Part):
    """`whole` with the residual `channels` alone, ascending.

    axes: of every tensor, by its whole name, the axes that the stream lies along. outer: tensors outside
    the blocks in the place of the source's, as `read` has them. record: how the channels were found.
    """

    def __init__(self, whole: Source, channels: Sequence[int], record: dict | None = None):
        check_channels(channels, whole)
        self._channels, self.record = [*channels], dict(record or {})
        self.outer: dict[str, torch.Tensor] = {}
        super().__init__(whole, narrower_config(whole, len(channels)))
        self.axes = self.of_the_stream()
        self.tensors = {name: self.entry(name) for name in whole.tensors}

    @property
    def channels(self) -> list[int]:
        return self._channels

    @cached_property
    def places(self) -> torch.Tensor:
        return torch.tensor(self.channels)

    def model_config(self):
        """By another type of the same arithmetic, where the family's refuses the hidden size."""
        try:
            return super().model_config()
        except Exception as error:  # whatever the class raises
            if other := other_type(self.whole.written_config, self.family):
                return config_of(self.written_config | other, self.family)
            raise InputError(
                f"The config class of {self.family.model_type} refuses a hidden size of "
                f"{len(self.channels)}: {in_a_line(error)}"
            ) from error

    def of_the_stream(self) -> dict[str, list[int]]:
        """InputError where the class makes something else of the hidden size, too."""
        many, label = len(self.channels), self.label
        had, has = (
            empty_model(source.model_config(), self.family, label).known
            for source in (self.whole, self)
        )
        axes, sizes = {}, (self.whole.hidden_size, many)
        for name in self.whole.tensors:
            pairs = list(zip(had.get(name, []), has.get(name, []), strict=True))
            axes[name] = [axis for axis, (before, after) in enumerate(pairs) if before != after]
            if any(pairs[axis] != sizes for axis in axes[name]):
                raise InputError(
                    f"The class of {self.family.model_type} makes {name} {has[name]} of a hidden size "
                    f"of {many}, which is no part of {had[name]}, so its hidden size cannot be cut."
                )
        return axes

    def entry(self, name: str) -> SimpleNamespace:
        """The header entry as a file of this model alone would have it."""
        entry = self.whole.tensors[name]
        if not self.axes[name]:
            return entry
        axes = self.axes[name]
        shape = [len(self.channels) if axis in axes else n for axis, n in enumerate(entry.shape)]
        numel = torch.Size(shape).numel()
        end = entry.begin + numel * entry.dtype.itemsize
        return SimpleNamespace(**vars(entry) | {"shape": shape, "numel": numel, "end": end})

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        names = list(names)
        read = self.whole.read(name for name in names if name not in self.outer)
        return {
            name: self.outer[name] if name in self.outer else self.narrow(name, read[name])
            for name in names
        }

    def narrow(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The channels that are left of a tensor of the source."""
        for axis in self.axes[name]:
            tensor = tensor.index_select(axis, self.places.to(tensor.device))
        if name in self.rescaled:
            times, plus = self.rescaled[name]
            wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
            tensor = ((wide + plus) * times - plus).to(tensor.dtype)
        return tensor

    def file_of(self, name: str) -> Path | None:
        changed = name in self.outer or self.axes[name]
        return None if changed else self.whole.file_of(name)

    @cached_property
    def embedding_times(self) -> float:
        """What the embedding is multiplied by, for the class that multiplies it by less."""
        if not self.family.embedded_by_width:
            return 1.0
        roots = (torch.tensor(s.hidden_size**0.5, dtype=self.dtype) for s in (self.whole, self))
        before, after = (root.item() for root in roots)  # rounded, as the class does
        return before / after

    @cached_property
    def rescaled(self) -> dict[str, tuple[float, float]]:
        """Of tensors that the embedding's factor changes, what they are times, what is added before."""
        if self.embedding_times == 1:
            return {}
        changed = {self.family.embedding: (self.embedding_times, 0.0)}
        if self.whole.tied:
            changed[self.last_norm] = (1 / self.embedding_times, self.family.norm_offset)
        return changed

    def readers(self, block: int, group: str) -> list[str]:
        """The matrices of a block that read the stream for a group, by their names inside it."""
        return self.matrices(block, group, -1)

    def writers(self, block: int, group: str) -> list[str]:
        """The tensors, biases among them, that make what a group adds to the stream."""
        matrices, there = self.matrices(block, group, -2), self.block_tensors(block)
        biases = [name.replace(".weight", ".bias") for name in matrices if name.endswith(".weight")]
        return [*matrices, *(name for name in biases if name in there)]

    def matrices(self, block: int, group: str, axis: int) -> list[str]:
        """Those of a group that have the stream along this axis, counted from the end."""
        owned, found = {part.tensor for part in self.family.attention}, []
        for name in self.block_tensors(block):
            whole = self.block_name(block, name)
            axes = len(self.tensors[whole].shape)
            if axes > 1 and (name in owned) == (group == "attention"):
                found += [name] * (self.axes[whole] == [axes + axis])
        return found

    def stream_norms(self, block: int) -> list[str]:
        """The norms of a block that the stream, or what is added to it, goes through: modules."""
        written = {name for group in self.family.groups() for name in self.writers(block, group)}
        vectors = [
            name
            for name in self.block_tensors(block)
            if self.axes[whole := self.block_name(block, name)] and name not in written
            if len(self.tensors[whole].shape) == 1
        ]
        return sorted({name.rpartition(".")[0] for name in vectors})


def narrower(source: Source, channels: Sequence[int]) -> Source:
    """The source with these channels of the stream alone; itself where none are named."""
    return FewerChannels(source, channels) if channels else source


def check_channels(channels: Sequence[int], source: Source) -> None:
    """Refuse what is no choice of channels, and sources whose hidden size cannot be cut."""
    size = source.hidden_size
    whole = all(type(c) is int and 0 <= c < size for c in channels)
    if not whole or sorted({*channels}) != [*channels] or not 0 < len(channels) < size:
        raise InputError(
            f"The residual channels that are kept are ascending numbers below {size}, and fewer than "
            "these."
        )
    check_family(source)


def check_family(source: Source) -> None:
    family = source.family
    why = None
    if family.inside:
        why = f"what else is in a {family.inside} gives as many channels to the text"
    elif family.heads_fixed:
        why = (
            f"transformers' class of {family.model_type} has hidden size / heads channels a head, so "
            "that heads would be cut with it"
        )
    elif source.coded:
        why = "no class of transformers builds it"
    elif source.mixed:
        why = "its blocks are of several kinds"
    if why is not None:
        raise InputError(f"The hidden size of {source.label} cannot be cut: {why}.")


def step_of(source: Source, *multiples: int) -> int:
    """What a hidden size is a multiple of: all of these, and what the config's class asks for where no
    other class computes the same.
    """
    family = source.family
    bound = family.heads_divide_hidden and not other_type(source.written_config, family)
    return lcm(*multiples, source.heads if bound else 1)


def narrower_config(source: Source, channels: int) -> dict:
    """What config.json says of the model with so many channels: heads stay as they are."""
    written = deepcopy(dict(source.written_config))
    written[source.family.spelled(written, "hidden_size")] = channels
    return written | {"head_dim": source.head_dim}
