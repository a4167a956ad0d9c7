"""Quantised folders: the blocks' projections packed, all else as it is in the dense folder."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from compressor.config.packing import Packing
from compressor.model.source import Source
from compressor.writing.packing import empty_parts, quantization_config
from compressor.writing.writer import Block, Writer, empty


class Packed(Writer):
    """A source whose projections are packed.

    quantized: of every block in order all tensors to store, by their names inside it.
    """

    def __init__(self, source: Source, packing: Packing, quantized: Iterable[Block] = ()):
        self.source, self.packing, self.quantized = source, packing, quantized
        self.container = source.family.model_type

    def empty_blocks(self) -> Iterator[Block]:
        matrices = self.source.family.projections()
        for index in range(self.source.blocks):
            block: Block = {}
            for inner in self.source.block_tensors(index):
                name = self.source.block_name(index, inner)
                tensor = empty(self.source, name)
                if inner in matrices:
                    block |= empty_parts(name, tensor.shape, tensor.dtype, self.packing)
                else:
                    block[name] = tensor
            yield block

    def pieces(self) -> Iterator[Callable[[], Block]]:
        for index, block in enumerate(self.quantized):
            yield partial(self.named, index, block)

    def named(self, index: int, block: Block) -> Block:
        return {self.source.block_name(index, inner): t for inner, t in block.items()}

    def config(self) -> dict:
        head = self.source.family.head.removesuffix(".weight")
        ignored = sorted({head, "lm_head"})  # as the files call it, and the class
        return self.source.written_config | {
            "architectures": [self.source.family.architecture],  # the class that was read
            "quantization_config": quantization_config(self.packing, ignored),
        }
