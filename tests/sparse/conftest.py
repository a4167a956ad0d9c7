"""A job on single weights, and a block of a small checkpoint with what enters it."""

import pytest
import torch

from compressor.kernels.rank import rank
from compressor.model.activations import Activations
from compressor.model.block import Block, observe, squares
from compressor.model.checkpoint import Checkpoint
from compressor.model.modules import loaded
from compressor.model.stream import BlockStream

TOKENS = 24


def token_ids(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 110, (TOKENS,), generator=generator) for _ in range(count)]


@pytest.fixture
def quick(text_file):
    """Options of a job, but for SOURCE, DEST and the sparsity."""
    return [
        "--calibration", text_file, "--length", 32, "--samples", 6,
    ]  # fmt: skip


@pytest.fixture
def open_block():
    """open(folder, dtype, sequences, index): the block with dense inputs, and its dense outputs."""
    opened = []

    def open_(folder, dtype=torch.float32, sequences=6, index=1) -> tuple[Block, Activations]:
        stream = BlockStream(Checkpoint(folder), dtype=dtype)
        batches = [ids[None] for ids in token_ids(sequences)]
        states, calls = stream.record(batches)
        for i, weights in stream.weights():
            context = loaded(stream.layers[i], weights)
            readers = stream.checkpoint.family.readers()
            called = [call[i] for call in calls]
            layer = context.__enter__()
            block = Block(i, layer, states, called, sequences, stream.device, readers)
            targets = Activations()
            observe(block, squares, targets)
            if i == index:
                opened.append(context)
                return block, targets
            context.__exit__(None, None, None)
            states = targets
        raise AssertionError(f"there is no block {index}")

    yield open_
    for context in opened:
        context.__exit__(None, None, None)


@pytest.fixture
def ranked():
    """Wanda's ranks of every projection of a block."""

    def ranked_(block: Block) -> dict[str, torch.Tensor]:
        norms = observe(block, squares)
        return {name: rank(w, norms[name].sqrt().to(w.dtype)) for name, w in block.weights.items()}

    return ranked_
