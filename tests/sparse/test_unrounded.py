"""Of weights that are zeroed and rounded to 4 bits together, those with zeros alone are kept as well."""

import torch
from sparse.conftest import token_ids

from compressor.config.sparse import Recipe
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.sparse.stream import Sparsification


def test_they_are_the_sources_own_bits_or_zero(llama, tmp_path):
    source = Checkpoint(llama)
    recipe = Recipe("besa", 0.5, group=16)
    pruning = Sparsification(BlockStream(source), token_ids(6), recipe, saved=tmp_path / "blocks")
    rounded = list(pruning.blocks())
    for index, tensors in enumerate(pruning.unrounded()):
        assert tensors.keys() == rounded[index].keys() == set(source.family.projections())
        weights, zeros = source.read_block(index), 0
        for name, tensor in tensors.items():
            stays = tensor != 0
            assert torch.equal(tensor[stays], weights[name][stays])
            assert not torch.equal(tensor, rounded[index][name])
            assert not rounded[index][name][~stays].any()
            zeros += int((~stays).sum())
        assert zeros == sum(t.numel() for t in tensors.values()) // 2
    assert index + 1 == source.blocks
