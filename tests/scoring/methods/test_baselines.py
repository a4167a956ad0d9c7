"""The baselines against their definitions."""

import torch

from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.scoring.score import score
from compressor.text.tokens import TokenSet


def test_random_depends_on_the_seed_alone(llama):
    checkpoint = Checkpoint(llama)
    first, again, other = (score(checkpoint, "random", seed=s).blocks for s in (0, 0, 100))
    assert all(torch.equal(a["ffn"], b["ffn"]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0]["ffn"], other[0]["ffn"])
    assert not torch.equal(first[0]["ffn"], first[1]["ffn"])


def test_magnitude_is_the_sum_of_squares_of_what_a_unit_owns(any_kinds):
    checkpoint = Checkpoint(any_kinds)
    found = score(checkpoint, "magnitude").blocks[1]
    for group, parts in checkpoint.family.groups().items():
        units, expected = checkpoint.units[group], 0
        for part in (p for p in parts if p.tensor.endswith("weight")):
            squares = checkpoint.read_block(1)[part.tensor].square().sum(1 - part.axis)
            pieces = part.pieces(squares, units, checkpoint.channel_sizes)
            expected = expected + sum(piece.sum(-1) for piece in pieces)
        torch.testing.assert_close(found[group], expected, rtol=1e-5, atol=0)


def test_magnitude_is_the_sum_of_squares_of_the_unit(llama):
    checkpoint = Checkpoint(llama)
    w = checkpoint.read_block(1)
    found = score(checkpoint, "magnitude").blocks[1]
    gate, up, down = (w[f"mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
    expected = gate.square().sum(1) + up.square().sum(1) + down.square().sum(0)
    torch.testing.assert_close(found["ffn"], expected, rtol=1e-5, atol=0)
    q, k, v, o = (w[f"self_attn.{n}_proj.weight"].square() for n in "qkvo")
    group = 2  # query heads 4 and 5, of 4 channels each
    expected = q[16:24].sum() + k[8:12].sum() + v[8:12].sum() + o[:, 16:24].sum()
    torch.testing.assert_close(found["attention"][group], expected, rtol=1e-5, atol=0)


def test_wanda_sp_is_mean_weight_times_input_norm(llama):
    checkpoint = Checkpoint(llama)
    tokens = TokenSet([torch.arange(3, 33), torch.arange(40, 70)])
    seen = []

    def visit(index, layer, forward):
        handle = layer.mlp.down_proj.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
        for _ in forward():
            pass
        handle.remove()

    BlockStream(checkpoint).run([b.ids for b in tokens.batches()], visit)
    found = score(checkpoint, "wanda-sp", None, tokens, BlockStream(checkpoint)).blocks[0]["ffn"]
    norm = seen[0].flatten(0, 1).square().sum(0).div(len(tokens.sequences)).sqrt()
    weight = checkpoint.read_block(0)["mlp.down_proj.weight"]
    torch.testing.assert_close(found, weight.abs().mean(0) * norm, rtol=1e-4, atol=0)
