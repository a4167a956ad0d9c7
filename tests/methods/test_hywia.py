"""Gradient x weight statistics from the streamed backward, and their fusion."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.blocks import BlockStream
from compressor.calibration import TokenSet
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.gradients import backward
from compressor.methods import METHODS
from compressor.methods.gradient_statistics import KINDS, GradientStatistics
from compressor.methods.hywia import attend, fuse, tokens
from compressor.methods.statistics import Geometry
from compressor.scores import Scores, score


def token_set(lengths=(20, 7, 13)) -> TokenSet:
    generator = torch.Generator().manual_seed(0)
    return TokenSet([torch.randint(3, 120, (n,), generator=generator) for n in lengths])


def evidence_of(folder, dtype=torch.float64):
    checkpoint = Checkpoint(folder)
    stream = BlockStream(checkpoint, dtype=dtype)
    found = {}

    def visit(index, layer, steps):
        with GradientStatistics(layer, Geometry.of(checkpoint), index) as statistics:
            for _ in steps():
                pass
        assert not any(p.requires_grad for p in layer.parameters())
        found[index] = statistics.tensors()

    backward(stream, [s[None] for s in token_set().sequences], visit)
    return checkpoint, [found[b] for b in range(checkpoint.blocks)]


def test_equal_those_of_an_ordinary_backward(any_family):
    checkpoint, found = evidence_of(any_family)
    model = AutoModelForCausalLM.from_pretrained(any_family, dtype=torch.float64)
    for n, ids in enumerate(token_set().sequences):
        model.zero_grad()
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, ids[1:]).backward()
        for b, evidence in enumerate(found):
            parts = {p.tensor: p.axis for g in checkpoint.family.groups().values() for p in g}
            for name, rows in evidence.items():
                parameter = model.get_parameter(checkpoint.block_name(b, name))
                product = (parameter * parameter.grad).detach()
                product = product if parts[name] == 0 else product.T
                units = product.reshape(rows.shape[-1], -1)
                channels = product.reshape(len(product), -1).sum(1).view(len(units), -1)
                expected = (units.sum(1).abs(), channels.abs().sum(1), units.abs().sum(1))
                scale = expected[2]
                for kind, value in zip(KINDS, (*expected, units.square().sum(1)), strict=True):
                    error = (rows[n, KINDS.index(kind)] - value).abs()
                    assert (error <= 1e-9 * scale + 1e-9 * value).all(), (name, kind)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mlp.up_proj.weight", "mlp.down_proj.weight"),
        ("self_attn.v_proj.weight", "self_attn.o_proj.weight"),
        ("self_attn.q_proj.weight", "self_attn.k_proj.weight"),
    ],
)
def test_coupled_tensors_have_one_gate_derivative(llama, one, other):
    # Scaling a unit's up rows or its down columns is the same change of the loss: a query head that
    # was counted to the wrong KV group would break it.
    for evidence in evidence_of(llama)[1]:
        a, b = (evidence[name][:, KINDS.index("signed")] for name in (one, other))
        size = evidence[one][:, KINDS.index("absolute")]
        assert ((a - b).abs() <= 1e-9 * size).all()
        assert (a > 0).any()


def test_tokens_are_root_mean_squares(llama):
    checkpoint, found = evidence_of(llama)
    geometry = Geometry.of(checkpoint)
    coarse, fine = tokens(found[0], geometry)["ffn"]
    signed = found[0]["mlp.down_proj.weight"][:, KINDS.index("signed")]
    torch.testing.assert_close(coarse, signed.square().mean(0).sqrt())
    names = ("gate", "up", "down")
    total = sum(found[0][f"mlp.{n}_proj.weight"][:, KINDS.index("absolute")] for n in names)
    torch.testing.assert_close(fine, total.square().mean(0).sqrt())
    assert (coarse <= fine).all()
    second = tokens(found[0], geometry, coarse="vector", fine="second")["attention"]
    assert second.shape == (2, checkpoint.kv_heads) and (second > 0).all()


def random_blocks(units=6, blocks=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = torch.rand(blocks, 2, units, generator=generator, dtype=torch.float64)
    return [{"ffn": block} for block in make + 0.1]


@pytest.mark.parametrize("mode", ["attention", "fixed:0.3"])
def test_fusion_knows_neither_units_nor_the_scale_of_either_part(mode):
    blocks = random_blocks()
    scores, alphas = fuse(blocks, mode)
    scaled = [{"ffn": b["ffn"] * torch.tensor([[7.0], [0.01]])} for b in blocks]
    order = torch.randperm(6)
    permuted = [{"ffn": b["ffn"][:, order]} for b in blocks]
    for b in range(3):
        torch.testing.assert_close(fuse(scaled, mode)[0][b]["ffn"], scores[b]["ffn"])
        torch.testing.assert_close(fuse(permuted, mode)[0][b]["ffn"], scores[b]["ffn"][order])
        assert ((alphas[b]["ffn"] >= 0) & (alphas[b]["ffn"] <= 1)).all()


@pytest.mark.parametrize(("mode", "row"), [("fixed:1", 0), ("fixed:0", 1)])
def test_the_ends_are_coarse_and_fine_alone(mode, row):
    blocks = random_blocks()
    mean = torch.cat([b["ffn"][row] for b in blocks]).mean()
    for block, found in zip(blocks, fuse(blocks, mode)[0], strict=True):
        torch.testing.assert_close(found["ffn"], block["ffn"][row] / mean)


def test_attention_goes_where_units_differ():
    flat = torch.ones(5, dtype=torch.float64)
    steep = torch.tensor([0.1, 0.2, 0.5, 1.0, 3.2], dtype=torch.float64)
    assert (attend(torch.stack((steep, flat)))[0] > 0.99).all()
    assert (attend(torch.stack((flat, steep)))[0] < 0.01).all()
    assert attend(torch.stack((flat, flat))).eq(0.5).all()
    assert attend(torch.rand(2, 1)).eq(0.5).all()


def test_scores_and_alpha_are_kept(llama, tmp_path):
    checkpoint = Checkpoint(llama)
    stream = BlockStream(checkpoint)
    found = score(checkpoint, "hywia", None, token_set(), stream)
    assert found.about["mode"] == "attention"
    found.save(tmp_path / "s.safetensors")
    loaded = Scores.load(tmp_path / "s.safetensors")
    for kept, made in ((loaded.blocks, found.blocks), (loaded.alpha, found.alpha)):
        assert len(kept) == checkpoint.blocks
        for a, b in zip(kept, made, strict=True):
            assert all(torch.equal(a[g], b[g]) for g in ("attention", "ffn"))
    again = score(checkpoint, "hywia", None, token_set(), stream)
    assert all(
        torch.equal(a["ffn"], b["ffn"]) for a, b in zip(found.blocks, again.blocks, strict=True)
    )


@pytest.mark.parametrize(
    "mode", ["fixed:", "fixed:a", "fixed:2", "fixed:x", "other", "attention:0.5"]
)
def test_unknown_modes(mode):
    with pytest.raises(InputError, match="has no mode"):
        METHODS["hywia"].check_mode(mode)


def test_a_gradient_that_is_not_finite_is_named(llama):
    checkpoint = Checkpoint(llama)
    layer = BlockStream(checkpoint).layers[0].to_empty(device="cpu")
    weight = layer.mlp.up_proj.weight
    weight.data.fill_(1.0)
    with (
        GradientStatistics(layer, Geometry.of(checkpoint), 4),
        pytest.raises(InputError, match=r"mlp.up_proj.weight in block 4 has 1536 infinite"),
    ):
        weight.mul(float("inf")).sum().backward()
