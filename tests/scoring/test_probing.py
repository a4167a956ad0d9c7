"""Probes give the loss changes of the ordinary model with the same units masked."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.model.units import BlockGeometry, only_units
from compressor.scoring.probing import loss_changes, ranks, sample_probes, spearman, state_bytes
from compressor.text.tokens import BATCH_TOKENS, TokenSet

PROBES = [
    (2, "ffn", 5),
    (0, "attention", 3),
    (1, {"attention": [0, 2], "ffn": list(range(0, 48, 2))}),
    (0, "ffn", 47),
    (1, "attention", 0),
    (2, {"ffn": []}),
]


def token_set(lengths=(20, 7, 13, 7, 1, 2)) -> TokenSet:
    generator = torch.Generator().manual_seed(0)
    return TokenSet([torch.randint(3, 120, (n,), generator=generator) for n in lengths])


def masked(probe, units) -> dict[str, list[int]]:
    if len(probe) == 2:
        return probe[1]
    _, group, unit = probe
    return {group: sorted({*range(units[group])} - {unit})}


def expected_changes(folder, tokens, probes) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    geometry = BlockGeometry.of(Checkpoint(folder))

    @torch.no_grad()
    def loss() -> float:
        nll = 0.0
        for ids in tokens.sequences:
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
            nll += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
        return nll / sum(len(ids) - 1 for ids in tokens.sequences)

    dense, found = loss(), []
    for probe in probes:
        layer = model.get_submodule(geometry.family.layers)[probe[0]]
        with only_units(layer, geometry, masked(probe, geometry.units)):
            found.append(loss() - dense)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("per_batch", [16, 64])
def test_equal_those_of_the_ordinary_model(any_family, per_batch, monkeypatch, rounding):
    monkeypatch.setattr("compressor.scoring.probing.logits_rows", lambda _: 5)
    stream = BlockStream(Checkpoint(any_family), dtype=torch.float64)
    found = loss_changes(stream, token_set().batches(per_batch), PROBES)
    expected = expected_changes(any_family, token_set(), PROBES)
    assert found.dtype == torch.float64
    assert (expected.abs() > 1e-6).sum() >= len(PROBES) - 1  # a unit behind relu may be silent
    torch.testing.assert_close(found, expected, rtol=0, atol=max(rounding, 1e-9))


@pytest.mark.parametrize("stacked", [1, 45, 10_000])
def test_neither_stacks_nor_files_nor_the_order_matter(llama, tmp_path, stacked, monkeypatch):
    monkeypatch.setattr("compressor.scoring.probing.STACKED", stacked / BATCH_TOKENS)
    checkpoint, batches = Checkpoint(llama), token_set().batches(30)
    host = loss_changes(BlockStream(checkpoint, dtype=torch.float64), batches, PROBES)
    disk = BlockStream(checkpoint, dtype=torch.float64, place=tmp_path)
    assert torch.equal(host, loss_changes(disk, batches, PROBES))
    assert not any(tmp_path.iterdir())
    other = loss_changes(disk, batches[::-1], PROBES[::-1]).flip(0)
    torch.testing.assert_close(other, host, rtol=0, atol=1e-9)
    monkeypatch.undo()
    expected = expected_changes(llama, token_set(), PROBES)
    torch.testing.assert_close(host, expected, rtol=0, atol=1e-9)


def test_a_block_is_read_once(llama, monkeypatch):
    read, original = [], Checkpoint.read_block
    monkeypatch.setattr(
        Checkpoint, "read_block", lambda self, block: read.append(block) or original(self, block)
    )
    seen = []
    stream = BlockStream(Checkpoint(llama))
    loss_changes(stream, token_set().batches(), PROBES, lambda *at: seen.append(at))
    assert read == [0, 1, 2]
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_no_probes(llama):
    assert loss_changes(BlockStream(Checkpoint(llama)), token_set().batches(), []).shape == (0,)


def test_the_bytes_are_those_of_the_kept_states(llama, monkeypatch):
    from compressor.model.activations import Activations

    stream = BlockStream(Checkpoint(llama), dtype=torch.bfloat16)
    batches, kept = token_set().batches(30), []
    discard = Activations.discard

    def weigh(self):
        kept.append(sum(state.nbytes for state in self.states.values()))
        discard(self)

    monkeypatch.setattr(Activations, "discard", weigh)
    loss_changes(stream, batches, PROBES)
    assert kept == [state_bytes(stream, batches, len(PROBES))]


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ((3, "ffn", 0), "no block 3 to probe: the model has 3"),
        ((-1, "ffn", 0), "no block -1"),
        ((0, "heads", 0), "no group 'heads'; groups are attention, ffn"),
        ((0, "attention", 4), "no unit 4 in the attention group of a block: it has 4"),
        ((0, {"ffn": [3, 48]}), "no unit 48 in the ffn group"),
        ((0, {"ffn": [-1]}), "no unit -1"),
    ],
)
def test_probes_of_what_is_not_there(llama, probe, message):
    with pytest.raises(InputError, match=message):
        loss_changes(BlockStream(Checkpoint(llama)), token_set().batches(), [probe])


@pytest.mark.parametrize("lengths", [(1, 1), ()])
def test_nothing_is_predicted(llama, lengths):
    with pytest.raises(InputError, match="predicts no token"):
        loss_changes(BlockStream(Checkpoint(llama)), token_set(lengths).batches(), PROBES)


def test_a_loss_that_is_not_finite_stops(make_checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    for name in ("gate_proj", "up_proj"):
        weights[f"model.layers.0.mlp.{name}.weight"][:2] = 1.0
    down = weights["model.layers.0.mlp.down_proj.weight"]
    down[:, 0], down[:, 1] = 6e4, -6e4  # cancel each other, until one of them is masked
    save_file(weights, folder / "model.safetensors")
    stream = BlockStream(Checkpoint(folder), dtype=torch.float16)
    with pytest.raises(InputError, match=r"with the probe \(0, 'ffn', 1\) is nan; try --dtype"):
        loss_changes(stream, token_set().batches(), [(1, "ffn", 0), (0, "ffn", 1)])
    weights["model.norm.weight"] *= float("inf")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match="of the dense model is"):
        loss_changes(BlockStream(Checkpoint(folder)), token_set().batches(), PROBES)


@pytest.mark.parametrize("count", [1, 7, 12, 30, 100, 3 * 52])
def test_sampled_probes_are_spread(count):
    units = {"attention": 4, "ffn": 48}
    probes = sample_probes([units] * 3, count, seed=1)
    assert len(set(probes)) == len(probes) == count
    assert probes == sorted(probes) == sample_probes([units] * 3, count, seed=1)
    assert all(unit < units[group] for _, group, unit in probes)
    cells = {(b, g): 0 for b in range(3) for g in units}
    for block, group, _ in probes:
        cells[block, group] += 1
    ffn = [n for (_, group), n in cells.items() if group == "ffn"]
    attention = [n for (_, group), n in cells.items() if group == "attention"]
    assert max(ffn) - min(ffn) <= 1 and max(attention) - min(attention) <= 1
    assert min(attention) == 4 or max(ffn) - min(attention) <= 1


def test_seeds_draw_other_probes_and_there_are_no_more_than_all():
    units = {"attention": 4, "ffn": 48}
    assert sample_probes([units] * 3, 30, seed=1) != sample_probes([units] * 3, 30, seed=2)
    assert len(sample_probes([units] * 3, 1000)) == 3 * 52
    with pytest.raises(InputError, match="must be positive, not 0"):
        sample_probes([units] * 3, 0)


def test_rank_correlation():
    values = torch.tensor([3.0, 1.0, 2.0, 2.0])
    assert ranks(values).tolist() == [4.0, 1.0, 2.5, 2.5]
    assert spearman(values, values.exp()) == pytest.approx(1)
    assert spearman(values, -values) == pytest.approx(-1)
    # Pearson's formula over the ranks 4, 1, 2.5, 2.5 and 1, 2, 3, 4.
    assert spearman(values, torch.arange(4.0)) == pytest.approx(-1.5 / (4.5 * 5) ** 0.5)
    assert math.isnan(spearman(torch.ones(3), torch.arange(3.0)))
