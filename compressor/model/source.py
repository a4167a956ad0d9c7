"""What is read: a checkpoint folder (`checkpoint.py`) or a model in memory (`loaded_model.py`)."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import torch

from compressor.config.packing import Packing
from compressor.errors import InputError
from compressor.model.empty_model import EmptyModel, check_fit, empty_model
from compressor.model.experts import in_files
from compressor.model.geometry import Geometry

COMPARED_ROWS = 4096


class Source(Geometry, ABC):
    """A model by its tensors, which are read one block at a time and never changed.

    `label` is what sentences call it; `path` its folder, None in memory. `config` has settings under
    their standard names, `written_config` is what config.json says. `tensors` maps a name, as files have
    it, to what is known without reading: `shape`, `dtype`, `numel`, `begin` and `end` in bytes, and
    `transposed` if files hold it as [in, out]. `coded` is whether transformers runs the model by code of
    its folder alone.
    """

    label: str
    path: Path | None = None
    written_config: dict
    tensors: dict[str, SimpleNamespace]
    dtype: torch.dtype
    fingerprint: str
    coded: bool = False
    dequantised: bool = False  # whether weights are stored in fewer bits than they are read in
    packing: Packing | None = None  # how weights are stored, where they are quantised
    notes: list[str]  # what a user should know of how it is read
    stacks = False  # whether files hold experts as modules do, one behind the other
    header_bytes = 0  # what files have before their first tensor
    side: Mapping[str, SimpleNamespace] = MappingProxyType(
        {}
    )  # tensors of a larger model around it

    @abstractmethod
    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The named tensors on the CPU, matrices as [out, in]; not to be written to."""

    def stored_name(self, name: str) -> str:
        """What files call a tensor of the model, one of the source or one that a result has besides."""
        return name

    def read_side(self, name: str) -> torch.Tensor:
        """A tensor of `side`."""
        raise AssertionError(f"{self.label} has no {name} beside the model")

    def whole_config(self, config: dict) -> dict:
        """What config.json says where the model's own config is this."""
        return config

    @abstractmethod
    def model_config(self):
        """transformers' config of the model, a copy."""

    def file_of(self, name: str) -> Path | None:
        """The file that holds this tensor's very bytes, from `begin` to `end`; None if none does."""
        return None

    def tokenizer(self):
        """transformers' tokenizer; InputError where there is none."""
        raise InputError(f"{self.label} has no tokenizer; give token ids.")

    def will_need_block(self, block: int) -> None:
        """Have a block's tensors ready soon."""

    def change(self) -> str | None:
        """What has happened to the files since they were opened, in a sentence; None where nothing has.
        `DamagedError` where they are no longer of the same model.
        """
        return None

    @property
    def whole(self) -> "Source":
        """The source that this is all of, or a part of (`fewer_blocks.py`, `fewer_channels.py`)."""
        return self

    @property
    def dropped(self) -> list[int]:
        """The blocks of `whole` that are not here, by their numbers there."""
        return []

    @property
    def numbers(self) -> list[int]:
        """The number in `whole` of every block."""
        return [*range(self.blocks)]

    @property
    def channels(self) -> list[int]:
        """The channels of `whole`'s residual stream that are here, where not all are; else none."""
        return []

    @property
    def tied(self) -> bool:
        return self.family.head not in self.tensors

    @property
    def last_norm(self) -> str:
        """The weight of the norm that the head reads."""
        outer = {name: self.tensors[name].shape for name in self.outer_tensors()}
        (name,) = (n for n, shape in outer.items() if len(shape) == 1 and n.endswith(".weight"))
        return name

    @property
    def ties(self) -> bool:
        """Whether the config says that the head is the embedding."""
        return bool(self.config.get("tie_word_embeddings"))

    @property
    def vocabulary(self) -> int:
        return self.tensors[self.family.embedding].shape[0]

    @property
    def parameters(self) -> int:
        return sum(t.numel for t in self.tensors.values())

    @property
    def bytes(self) -> int:
        return sum(t.end - t.begin for t in self.tensors.values())

    def block_name(self, block: int, name: str) -> str:
        return f"{self.family.layers}.{block}.{name}"

    def block_tensors(self, block: int) -> list[str]:
        """Names inside one block, e.g. `mlp.up_proj.weight`."""
        prefix = self.block_name(block, "")
        return [name.removeprefix(prefix) for name in self.tensors if name.startswith(prefix)]

    def block_entries(self, block: int) -> dict[str, SimpleNamespace]:
        """What is known of the tensors of one block, by their name inside it."""
        names = self.block_tensors(block)
        return {name: self.tensors[self.block_name(block, name)] for name in names}

    def outer_tensors(self) -> list[str]:
        """Names outside the blocks: embedding, last norm, head."""
        return [name for name in self.tensors if not name.startswith(self.family.layers + ".")]

    def read_block(self, block: int) -> dict[str, torch.Tensor]:
        """All tensors of one block, by their name inside it."""
        names = self.block_tensors(block)
        tensors = self.read(self.block_name(block, name) for name in names)
        return {name: tensors[self.block_name(block, name)] for name in names}

    def as_stored(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor of this whole name as files hold it: what `read` gives, turned back."""
        return tensor.t() if self.tensors[name].transposed else tensor

    def in_files(self, name: str, tensor: torch.Tensor, stacks: bool) -> dict[str, torch.Tensor]:
        """The tensor of this whole name by the names, and in the form, that files have, with single
        experts or with `stacks` of them.
        """
        if self.family.experts and not stacks:
            return dict(in_files(name, tensor, self.family))
        return {name: self.as_stored(name, tensor)}

    # -- opening ----------------------------------------------------------------------------------

    def settle_head(self) -> None:
        """Of a head and an embedding that the config ties, one is enough, as transformers 5 has it.

        A second copy is forgotten. A head of other values is used, and the config is made to say so.
        """
        head, embedding = self.family.head, self.family.embedding
        if not self.ties or head not in self.tensors:
            return
        if embedding not in self.tensors:
            self.tensors[embedding] = self.tensors.pop(head)
        elif self.equal(head, embedding):
            del self.tensors[head]
        else:
            self.config["tie_word_embeddings"] = self.written_config["tie_word_embeddings"] = False
            self.notes.append(
                f"The config of {self.label} ties the head to the embedding, but the files hold a head "
                f"({head}) of other values. It is used here, as transformers 5 does; transformers 4.57 "
                "and vLLM would use the embedding. What is written says tie_word_embeddings false, so "
                "that all use the head."
            )

    def equal(self, name: str, other: str) -> bool:
        pair = self.read([name, other])
        parts = zip(*(pair[n].split(COMPARED_ROWS) for n in (name, other)), strict=False)
        same_shape = pair[name].shape == pair[other].shape
        return same_shape and all(torch.equal(a.float(), b.float()) for a, b in parts)

    def check_tensors(self) -> EmptyModel:
        """The model that the config makes; InputError where the tensors are not those of it."""
        empty = empty_model(self.model_config(), self.family, self.label)
        check_fit(self.tensors, empty, self.family, self.ties, self.label)
        return empty
