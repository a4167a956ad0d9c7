"""What selection makes of scores, on whole models."""

from itertools import pairwise

import pytest
import torch

from compressor.config.score import ScoreConfig
from compressor.config.target import Target
from compressor.errors import InputError
from compressor.job.resolve import default_selection
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.model.units import BlockGeometry
from compressor.planning.allocation import allocate
from compressor.scoring.probing import loss_changes
from compressor.scoring.score import score
from compressor.scoring.scores import Scores
from compressor.scoring.selection import looked_at, refined, spread
from compressor.solvers.elimination import eliminate
from compressor.text.tokens import TokenSet


def texts(count=10) -> TokenSet:
    """Sequences of different lengths, so that batches are padded."""
    torch.manual_seed(5)
    return TokenSet([torch.randint(3, 15, (30 + i % 7,)) for i in range(count)])


def made(folder, method="llm-bip", **options) -> tuple[Scores, Scores, BlockStream]:
    stream = BlockStream(Checkpoint(folder))
    plain = score(stream.checkpoint, method, None, texts(), stream)
    chosen = {"select": "score", "kv_cost": "score"} | options
    return plain, refined(plain, stream, texts(), **chosen), stream


def grams(stream: BlockStream) -> list[dict[str, torch.Tensor]]:
    """Of every block and group, G of the output projection and its weight, sequence by sequence.

    Every token divided by the root mean square of the stream that the group reads.
    """
    geometry = BlockGeometry.of(stream.checkpoint)
    found = []

    def visit(index, layer, forward) -> None:
        seen, sizes = ({g: [] for g in geometry.units} for _ in range(2))
        handles = [
            layer.get_submodule(name).register_forward_pre_hook(
                lambda _, args, own=own: own.append(args[0].flatten(0, -2).double())
            )
            for g in seen
            for name, own in (
                (geometry.family.entered(g), sizes[g]),
                (geometry.output_module(g), seen[g]),
            )
        ]
        for _ in forward():
            pass
        for handle in handles:
            handle.remove()
        rows = {
            g: torch.cat(parts) / torch.cat(sizes[g]).square().mean(-1, keepdim=True).sqrt()
            for g, parts in seen.items()
        }
        weights = {
            g: layer.get_parameter(geometry.family.output(g)).detach().double() for g in seen
        }
        found.append({g: (a.T @ a / len(a), weights[g]) for g, a in rows.items()})

    stream.run([s[None] for s in texts().sequences], visit).discard()
    return found


@pytest.mark.parametrize(("method", "power"), [("llm-bip", 2), ("kfac", 1)])
def test_obs_is_elimination_with_the_scores_as_errors(any_kinds, method, power):
    plain, found, stream = made(any_kinds, method, select="obs")
    for before, after, pairs in zip(plain.blocks, found.blocks, grams(stream), strict=True):
        for group, (gram, weight) in pairs.items():
            expected = eliminate(gram, weight, before[group].double() ** power)
            torch.testing.assert_close(after[group], expected, rtol=5e-3, atol=2e-9)
    assert found.about == plain.about | {"select": "obs"}


def test_measured_groups_are_the_loss_changes(llama):
    plain, found, stream = made(llama, kv_cost="measured")
    probes = [(b, "attention", u) for b in range(3) for u in range(4)]
    every = TokenSet(texts().sequences[:8]).batches()
    changes = loss_changes(BlockStream(stream.checkpoint), every, probes)
    mine = torch.cat([block["attention"] for block in found.blocks])
    torch.testing.assert_close(mine.double(), changes.clamp_min(0), rtol=1e-4, atol=1e-7)
    assert changes.max() > 0
    for before, after in zip(plain.blocks, found.blocks, strict=True):
        assert torch.equal(before["ffn"], after["ffn"])


def test_both_together_make_a_plan_that_can_be_saved_and_cut_again(llama, tmp_path):
    _, found, stream = made(llama, select="obs", kv_cost="measured")
    found.save(tmp_path / "scores.safetensors")
    again = Scores.load(tmp_path / "scores.safetensors")
    plans = [allocate(s, stream.checkpoint, Target("keep", 0.7)) for s in (found, again)]
    assert plans[0] == plans[1]
    assert again.about["select"] == "obs" and again.about["kv_cost"] == "measured"


def test_same_input_same_output(llama):
    first, second = (made(llama, select="obs", kv_cost="measured")[1] for _ in range(2))
    for a, b in zip(first.blocks, second.blocks, strict=True):
        assert all(torch.equal(a[g], b[g]) for g in a)


@pytest.mark.parametrize(
    ("method", "repair", "expected"),
    [
        ("llm-bip", "ridge", "obs"),
        ("hywia", "refine", "obs"),
        ("llm-bip", "none", "score"),
        ("llm-bip", "bias", "score"),
        ("magnitude", "ridge", "score"),
        ("random", "ridge", "score"),
    ],
)
def test_the_default_counts_on_a_refit(method, repair, expected):
    assert default_selection(method, repair) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": "best"}, "--select is score or obs, not 'best'"),
        ({"kv_cost": "guessed"}, "--kv-cost is score or measured, not 'guessed'"),
    ],
)
def test_unknown_choices(llama, options, message):
    with pytest.raises(InputError, match=message):
        made(llama, "magnitude", **options)


@pytest.mark.parametrize(
    ("length", "channels", "looked_at"),
    [
        (511, 8, 43),
        (512, 8, 32),
        (512, 1639, 43),
        (512, 3276, 64),
        (512, 3277, 128),
        (512, 9999, 128),
    ],
)
def test_of_a_long_text_so_much_is_looked_at_that_every_channel_has_ten_tokens(
    length, channels, looked_at
):
    text = TokenSet([torch.full((length,), i) for i in range(128)])
    some = spread(text, channels)
    assert len(some.sequences) == looked_at
    assert some.tokens >= min(text.tokens, max(16_384, 10 * channels))
    places = [int(s[0]) for s in some.sequences]
    assert len({b - a for a, b in pairwise(places)}) == 1


@pytest.mark.parametrize(
    ("method", "select", "sequences"),
    [("llm-bip", "obs", 32), ("llm-bip", "score", 128), ("hywia", "obs", 128)],
)
def test_scores_that_are_ordered_again_are_taken_on_as_much(method, select, sequences):
    text = TokenSet([torch.full((512,), i) for i in range(128)], {"source": "a text"})
    asked = ScoreConfig(method=method, select=select)
    seen = looked_at(text, asked, 8)
    assert len(seen.sequences) == sequences and seen.protocol == text.protocol
    assert looked_at(None, asked, 8) is None
