"""Writing a checkpoint folder that stock transformers and vLLM load.

A `Writer` says what goes into the folder of one result: `cuts.py` and `packed.py` have the forms. A new
form is one more file, and a line of `LAYOUTS` (`config/layouts.py`) if --layout is to offer it.

The config is the original text with the changed keys patched, never re-serialised by a config class;
side files are copied byte for byte; tensors are written one block at a time, beside the computation of
the next.
"""

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from compressor.config.json_files import ESCAPED
from compressor.model.beside import Beside
from compressor.model.disk import check_space
from compressor.model.source import Source
from compressor.writing.shards import SHARD_BYTES, divided, opened, write_index
from compressor.writing.side_files import copy_side_files
from compressor.writing.tokenizer_class import name_class

Block = dict[str, torch.Tensor]


class Writer(ABC):
    """What goes into the folder of one result of a source.

    container: the model type that is written. code: Python files that config.json names.
    """

    source: Source
    container: str
    code: tuple[Path, ...] = ()

    @property
    def moved(self) -> bool:
        """Whether the folder's model type is another than the source's."""
        return self.container != self.source.family.model_type and not self.source.family.inside

    @abstractmethod
    def empty_blocks(self) -> Iterator[Block]:
        """What `blocks` gives, as tensors on the meta device."""

    @abstractmethod
    def pieces(self) -> Iterator[Callable[[], Block]]:
        """Of every block in order, what makes all its tensors as files hold them, by their whole names:
        work of the host, which may be done while the next block is computed.
        """

    def blocks(self) -> Iterator[Block]:
        """Of every block in order, all tensors as files hold them, by their whole names."""
        return (piece() for piece in self.pieces())

    @abstractmethod
    def config(self) -> dict:
        """What config.json says."""

    def empty_side(self) -> Block:
        """What a larger model around this one has besides, by the names that files have."""
        return {name: empty_of(entry) for name, entry in self.source.side.items()}

    def empty_outer(self) -> Block:
        """What lies outside the blocks, which no form changes, on the meta device."""
        return {name: empty(self.source, name) for name in self.source.outer_tensors()}

    def bytes(self) -> int:
        """What all tensors of the result will take."""
        results = [self.empty_side(), self.empty_outer(), *self.empty_blocks()]
        return sum(t.nbytes for result in results for t in result.values())


def write_folder(
    writer: Writer,
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make the new folder `folder`; MachineError, before anything is made, where it has no room."""
    source = writer.source
    of_the_model = (writer.empty_outer(), *writer.empty_blocks())
    named = ({source.stored_name(n): t for n, t in part.items()} for part in of_the_model)
    shards = divided([writer.empty_side(), *named], shard_bytes)
    check_space(folder.parent, sum(t.nbytes for shard in shards for t in shard.values()))
    folder.mkdir(parents=True)
    with opened(folder, shards) as files, Beside() as beside:

        def put(piece: Callable[[], Block]) -> None:
            block = piece()
            for name in list(block):  # taken out, so that no more is held than is yet to be written
                stored = source.stored_name(name)
                files[stored].put(stored, block.pop(name))

        for name in source.side:
            files[name].put(name, source.read_side(name))
        for index, piece in enumerate(writer.pieces()):
            beside.do(put, piece)
            progress(index + 1, source.blocks)
        for name in source.outer_tensors():  # a repair may have changed them, after all blocks
            beside.do(put, partial(source.read, [name]))
    write_index(folder, shards)
    copy_side_files(source, folder)
    for file in writer.code:
        shutil.copyfile(file, folder / file.name)
    text = json.dumps(source.whole_config(writer.config()), indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8", errors=ESCAPED)
    name_class(source, folder, moved=writer.moved)


def empty(source: Source, name: str) -> torch.Tensor:
    return empty_of(source.tensors[name])


def empty_of(entry: SimpleNamespace) -> torch.Tensor:
    return torch.empty(entry.shape, dtype=entry.dtype, device="meta")
