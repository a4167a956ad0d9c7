"""Steps that are timed on a block."""

import pytest
import torch

from compressor.errors import DamagedError
from compressor.job.forecast import samples
from compressor.job.forecast.samples import CHANNELS, Bench, grown, on_a_block, seconds_of
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.scoring.methods import METHODS
from compressor.text.tokens import TokenSet

TOKENS = TokenSet([torch.arange(3, 3 + n) for n in (9, 30, 20)])


@pytest.mark.parametrize(("power", "expected"), [(2, 2), (2.6, 2.6), (3, 3), (1.5, 2), (3.4, 3)])
def test_algebra_grows_as_it_does_below(power, expected):
    def seconds(channels: int) -> float:
        return 1e-9 * channels**power

    assert grown(seconds, CHANNELS // 3) == seconds(CHANNELS // 3)
    found = grown(seconds, 8 * CHANNELS)
    assert found == pytest.approx(seconds(CHANNELS) * 8**expected)


def test_units_stay_whole():
    seen = []
    grown(lambda channels: seen.append(channels) or 1.0, 4096, 192)
    assert seen == [960, 384]
    assert grown(lambda channels: channels, 6000, 3000) == 24_000  # of one unit: 3000 x 2^3


@pytest.mark.parametrize(
    ("first", "second", "found", "runs"),
    [(0.2, 0.1, 0.1, 2), (0.1, 0.2, 0.1, 2), (2.1, 0.1, 2.1, 1)],
)
def test_what_is_short_is_timed_twice(monkeypatch, first, second, found, runs):
    clock, left = [0.0], [second, first]
    monkeypatch.setattr(samples.time, "perf_counter", lambda: clock[0])

    def work() -> None:
        clock[0] += left.pop()

    assert seconds_of(work, torch.device("cpu")) == pytest.approx(found)
    assert len(left) == 2 - runs


def test_every_step_of_every_family(any_family):
    checkpoint = Checkpoint(any_family)
    state = torch.random.get_rng_state()

    def measure(bench: Bench) -> list[float]:
        assert bench.block == checkpoint.blocks // 2 and bench.tokens == 30  # the longest
        found = [bench.forward(), bench.trained(), bench.predicted(), bench.widened()]
        found.append(bench.told_apart())
        found += [bench.scored(name, None) for name in ("llm-bip", "wanda-sp")]
        if not checkpoint.family.parallel(checkpoint.config):
            found.append(bench.scored("hywia", None))
        units = checkpoint.units
        for group, count in units.items():
            channels = count * bench.geometry.channels(group)
            found += [bench.eliminated(channels, count), bench.regressed(channels)]
            found.append(bench.summed(channels, checkpoint.hidden_size))
        return found

    before = {n: t.clone() for n, t in checkpoint.read_block(checkpoint.blocks // 2).items()}
    found = on_a_block(BlockStream(checkpoint), TOKENS, measure)
    assert all(0 < seconds < 5 for seconds in found)
    after = checkpoint.read_block(checkpoint.blocks // 2)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("method", [m.name for m in METHODS.values() if m.observe is not None])
def test_every_backward(llama, method):
    found = on_a_block(BlockStream(Checkpoint(llama)), TOKENS, lambda b: b.scored(method, None))
    assert 0 < found < 1


def test_a_damaged_block_is_named(llama, tmp_path, monkeypatch):
    checkpoint = Checkpoint(llama)
    monkeypatch.setattr(
        BlockStream,
        "weights",
        lambda stream, blocks: iter(
            [(1, {n: t * torch.nan for n, t in checkpoint.read_block(1).items()})]
        ),
    )
    with pytest.raises(DamagedError, match=r"model\.layers\.1\..* holds NaN"):
        on_a_block(BlockStream(checkpoint), TOKENS, Bench.forward)
