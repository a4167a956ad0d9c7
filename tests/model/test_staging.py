"""Blocks that come to a GPU through pinned memory are the blocks of the files."""

from itertools import pairwise

import pytest
import torch
from fake_gpu import installing
from fake_gpu.ledger import LEDGER
from fake_gpu.tensor import DEVICE

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.loaded_model import LoadedModel
from compressor.model.staging import ALIGNED, places_of, read_into, staged


def sources(build, folder):
    """A folder of every way of storing: as it is, turned, fused in parts; and a model in memory."""
    from transformers import AutoModelForCausalLM

    for name in ("llama", "gpt2", "bloom"):
        yield Checkpoint(build(folder / name, name, dtype=torch.bfloat16))
    yield LoadedModel(AutoModelForCausalLM.from_pretrained(folder / "llama"))


def test_every_block_arrives(make_checkpoint, tmp_path, monkeypatch):
    whole = [
        (s, [s.read_block(i) for i in range(s.blocks)]) for s in sources(make_checkpoint, tmp_path)
    ]
    installing.install(monkeypatch)
    for source, expected in whole:
        for dtype in (torch.bfloat16, torch.float32):
            found = staged(source, range(source.blocks), DEVICE, dtype)
            for (index, block), aim in zip(found, expected, strict=True):
                assert block.keys() == aim.keys()
                for name, tensor in block.items():
                    assert tensor.device == DEVICE and tensor.dtype == dtype
                    assert torch.equal(tensor.cpu(), aim[name].to(dtype)), (index, name)


def test_any_order_of_blocks_and_one_copy_for_each(llama, monkeypatch):
    source = Checkpoint(llama)
    expected = {i: source.read_block(i) for i in range(source.blocks)}
    installing.install(monkeypatch)
    order = range(source.blocks - 1, -1, -1)
    LEDGER.clear()
    for index, block in staged(source, order, DEVICE, source.dtype):
        assert all(torch.equal(t.cpu(), expected[index][n]) for n, t in block.items())
    assert LEDGER.total("to_device") == source.blocks
    assert LEDGER.total("waits") == sum(map(len, expected.values()))  # those of this test


def test_memory_is_taken_twice_and_not_for_every_block(llama, monkeypatch):
    installing.install(monkeypatch)
    source = Checkpoint(llama)
    for _ in staged(source, range(source.blocks), DEVICE, source.dtype):
        pass
    assert len(installing.PINNED) == 2


def test_tensors_begin_where_a_device_can_read_them(llama):
    source = Checkpoint(llama)
    names = [source.block_name(0, name) for name in source.block_tensors(0)]
    places, size = places_of(source, names)
    assert all(place.start % ALIGNED == 0 for place in places.values())
    ends = sorted((place.start, place.stop) for place in places.values())
    assert all(stop <= start for (_, stop), (start, _) in pairwise(ends))
    assert size >= ends[-1][1]


def test_a_file_that_is_cut_off_meanwhile(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"0123456789")
    memory = memoryview(bytearray(4))
    read_into(file, 3, memory)
    assert bytes(memory) == b"3456"
    with pytest.raises(InputError, match=r"shortened while it was read: 2 bytes .* from byte 10"):
        read_into(file, 8, memory)
