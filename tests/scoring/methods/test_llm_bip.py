"""LLM-BIP's identities, on real blocks of a random model."""

import pytest
import torch

from compressor.model.activations import states_of
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.model.units import BlockGeometry, only_units
from compressor.scoring.methods import BIP_MODES as MODES
from compressor.scoring.methods import METHODS
from compressor.scoring.methods.llm_bip import amplification
from compressor.scoring.score import score
from compressor.text.tokens import TokenSet


def token_set(lengths=(20, 13, 7, 20), seed=0) -> TokenSet:
    generator = torch.Generator().manual_seed(seed)
    return TokenSet([torch.randint(3, 120, (n,), generator=generator) for n in lengths])


def scores_of(folder, mode, tokens=None, method="llm-bip", **options):
    checkpoint = Checkpoint(folder)
    stream = BlockStream(checkpoint, dtype=options.pop("dtype", torch.float64))
    return score(checkpoint, method, mode, tokens or token_set(), stream, **options)


def block_errors(folder, group, p):
    """||output with the unit removed - output||_p of block 0 for every unit, by brute force.

    Where a norm follows the group's output projection, of what that norm is given.
    """
    checkpoint = Checkpoint(folder)
    stream = BlockStream(checkpoint, dtype=torch.float64)
    geometry = BlockGeometry.of(checkpoint)
    tokens = token_set()
    batches = tokens.batches()
    errors = []

    def visit(index, layer, forward):
        captured = []
        normed = group in geometry.family.post_norms
        module = layer.get_submodule(geometry.output_module(group)) if normed else layer
        handle = module.register_forward_hook(lambda m, a, out: captured.append(states_of(out)))

        def run():
            captured.clear()
            for _ in forward():
                pass
            return torch.cat([c[b.mask] for c, b in zip(captured, batches, strict=True)])

        whole = run()
        if index == 0:
            units = range(geometry.units[group])
            for unit in units:
                with only_units(layer, geometry, {group: [u for u in units if u != unit]}):
                    errors.append(torch.linalg.vector_norm(run() - whole, p).item())
        run()
        handle.remove()

    stream.run([b.ids for b in batches], visit)
    return torch.tensor(errors, dtype=torch.float64), tokens.tokens


@pytest.mark.parametrize(("mode", "p"), [("bip", 1), ("bip-energy", 2)])
def test_ffn_score_is_the_block_output_error_of_zeroing_the_channel(any_kinds, mode, p):
    errors, tokens = block_errors(any_kinds, "ffn", p)
    found = scores_of(any_kinds, mode).blocks[0]["ffn"].double()
    torch.testing.assert_close(found, errors / tokens ** (1 / p), rtol=1e-5, atol=0)


def test_attention_score_bounds_and_orders_the_error(llama):
    errors, _ = block_errors(llama, "attention", 2)
    found = scores_of(llama, "bip-gram").blocks[0]["attention"]
    assert found.argmax() == errors.argmax()


def test_gram_mode_is_exact_where_the_ffn_passes_nothing(llama):
    """With the FFN switched off, v = 1 and the score is the error of removing the whole group."""
    checkpoint = Checkpoint(llama)
    weights = {n: w.double() for n, w in checkpoint.read_block(0).items()}
    weights["mlp.down_proj.weight"] = torch.zeros_like(weights["mlp.down_proj.weight"])
    x = torch.randn(50, checkpoint.heads * checkpoint.head_dim, dtype=torch.float64)
    units = x.unflatten(1, (checkpoint.kv_heads, -1)).transpose(0, 1)
    statistics = {
        "attention": torch.stack((x.abs().mean(0), x.mean(0), x.square().mean(0))),
        "ffn": torch.zeros(3, checkpoint.units["ffn"], dtype=torch.float64),
        "gram": units.transpose(1, 2) @ units / 50,
        "gated": torch.zeros(4, checkpoint.units["ffn"], dtype=torch.float64),
        "norm_rate": torch.tensor(1.0, dtype=torch.float64),
    }
    found = METHODS["llm-bip"].score(
        weights, statistics, BlockGeometry.of(checkpoint), "bip-gram", 0
    )
    o = weights["self_attn.o_proj.weight"].unflatten(1, (checkpoint.kv_heads, -1))
    expected = [(u @ o[:, g].T).square().sum().div(50).sqrt() for g, u in enumerate(units)]
    torch.testing.assert_close(found["attention"], torch.stack(expected), rtol=1e-5, atol=0)


def test_reassociated_chain_equals_the_matrix_product(llama):
    """sum_k |W_O|(I + |W_U||W_D|) in the reported form equals three column sums."""
    checkpoint = Checkpoint(llama)
    w = checkpoint.read_block(0)
    a = w["mlp.down_proj.weight"].abs().sum(0).double()
    v = amplification(w, {}, BlockGeometry.of(checkpoint), "bip", a)
    o, up, down = (
        w[f"{n}_proj.weight"].abs().double() for n in ("self_attn.o", "mlp.up", "mlp.down")
    )
    rows = o.T @ (torch.eye(o.shape[0]) + up.T @ down.T)
    torch.testing.assert_close(o.T @ v, rows.sum(1), rtol=1e-5, atol=0)


def test_kv_groups_are_whole(llama):
    """A group's p = 1 score is the sum over the channels of the query heads that share its keys."""
    checkpoint = Checkpoint(llama)
    w = {n: t.double() for n, t in checkpoint.read_block(0).items()}
    channels = checkpoint.heads * checkpoint.head_dim
    ones = torch.ones(3, channels, dtype=torch.float64)
    statistics = {"attention": ones, "ffn": torch.ones(3, 48, dtype=torch.float64)}
    found = METHODS["llm-bip"].score(w, statistics, BlockGeometry.of(checkpoint), "bip", 0)[
        "attention"
    ]
    v = amplification(
        w, {}, BlockGeometry.of(checkpoint), "bip", w["mlp.down_proj.weight"].abs().sum(0)
    )
    per_channel = v @ w["self_attn.o_proj.weight"].abs()
    per_head = per_channel.view(checkpoint.heads, checkpoint.head_dim).sum(1)
    torch.testing.assert_close(found, per_head.view(4, 2).sum(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_padding_and_batch_split_do_not_matter(llama, mode, monkeypatch):
    together = scores_of(llama, mode)
    original = TokenSet.batches
    monkeypatch.setattr(TokenSet, "batches", lambda self, _: original(self, 1))
    alone = scores_of(llama, mode)
    for a, b in zip(together.blocks, alone.blocks, strict=True):
        for group in a:
            torch.testing.assert_close(a[group], b[group], rtol=1e-5, atol=0)


def test_same_inputs_same_bytes(llama):
    first, second = scores_of(llama, "bip-gram"), scores_of(llama, "bip-gram")
    assert all(
        torch.equal(a[g], b[g]) for a, b in zip(first.blocks, second.blocks, strict=True) for g in a
    )


def test_pruned_statistics_change_later_blocks_only(llama):
    dense = scores_of(llama, "bip-energy")
    pruned = scores_of(llama, "bip-energy", kept_units=[{"attention": 2, "ffn": 16}] * 3)
    assert torch.equal(dense.blocks[0]["ffn"], pruned.blocks[0]["ffn"])
    assert not torch.equal(dense.blocks[1]["ffn"], pruned.blocks[1]["ffn"])


def test_nothing_is_lost_when_all_units_are_kept(llama):
    dense = scores_of(llama, "bip-energy")
    same = scores_of(llama, "bip-energy", kept_units=[{"attention": 4, "ffn": 48}] * 3)
    for a, b in zip(dense.blocks, same.blocks, strict=True):
        assert torch.equal(a["ffn"], b["ffn"])
