"""A folder's model that may be part of a larger one: the language model of one of texts and images."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import torch

from compressor.config.json_files import read_object
from compressor.model.families.wrappers import Wrapper
from compressor.model.source import Source
from compressor.model.tensors import read_tensors


class Wrapped(Source):
    """`wrapper` is the type of the larger model, None of a model alone. Its other tensors are `side`."""

    path: Path
    wrapper: Wrapper | None = None

    def part_from(self, stored: Mapping[str, SimpleNamespace]) -> None:
        """What of all header entries, by the names that files have, is not the model's, is `side`."""
        read = {entry.key for entry in self.tensors.values()}
        self.side = {name: entry for name, entry in stored.items() if name not in read}

    @property
    def all_entries(self) -> tuple[SimpleNamespace, ...]:
        return (*self.tensors.values(), *self.side.values())

    @cached_property
    def prefixes(self) -> tuple[str, str]:
        """What the names of blocks begin with, and what they begin with in the files."""
        name = next(n for n in self.tensors if n.startswith(self.family.layers + "."))
        own = self.family.layers.partition(".")[0] + "."
        return own, self.tensors[name].key.removesuffix(name.removeprefix(own))

    def stored_name(self, name: str) -> str:
        if not self.wrapper:
            return name
        if name in self.tensors:
            return self.tensors[name].key
        own, stored = self.prefixes
        return stored + name.removeprefix(own)

    def read_side(self, name: str) -> torch.Tensor:
        return read_tensors(self.side, [name])[name]

    def whole_config(self, config: dict) -> dict:
        if not self.wrapper:
            return config
        return self.wrapper.with_text(read_object(self.path / "config.json"), config)
