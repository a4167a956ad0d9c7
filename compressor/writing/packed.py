"""Quantised folders: the blocks' projections packed to 4 bits, all else as it is in the dense folder."""

from collections.abc import Iterable, Iterator

import torch

from compressor.model.source import Source
from compressor.writing.packing import packed, quantization_config
from compressor.writing.writer import Block, Writer, empty


class Packed(Writer):
    """A source whose projections have scales for groups of so many input channels.

    quantized: of every block in order all tensors to store, by their names inside it.
    """

    def __init__(self, source: Source, group: int, quantized: Iterable[Block] = ()):
        self.source, self.group, self.quantized = source, group, quantized
        self.container = source.family.model_type

    def empty_blocks(self) -> Iterator[Block]:
        matrices = self.source.family.projections()
        for index in range(self.source.blocks):
            block: Block = {}
            for inner in self.source.block_tensors(index):
                name = self.source.block_name(index, inner)
                tensor = empty(self.source, name)
                if inner not in matrices:
                    block[name] = tensor
                    continue
                rows, columns = tensor.shape
                scale = torch.empty(rows, columns // self.group, dtype=tensor.dtype, device="meta")
                block |= packed(name, tensor, scale, self.group)
            yield block

    def blocks(self) -> Iterator[Block]:
        for index, block in enumerate(self.quantized):
            yield {self.source.block_name(index, inner): t for inner, t in block.items()}

    def config(self) -> dict:
        head = self.source.family.head.removesuffix(".weight")
        ignored = sorted({head, "lm_head"})  # as the files call it, and the class
        return self.source.written_config | {
            "architectures": [self.source.family.architecture],  # the class that was read
            "quantization_config": quantization_config(self.group, ignored),
        }
