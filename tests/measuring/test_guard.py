"""Held-back losses against written checkpoints, and the job that takes the best of them."""

import json
import math

import pytest
import torch
from jobs import compress, said, same_bytes, stage

from compressor.config.target import Target
from compressor.errors import InputError
from compressor.evaluation.reference import perplexity
from compressor.measuring.guard import JUDGED, held_back, judge, loss_after
from compressor.model.checkpoint import Checkpoint
from compressor.model.per_layer import has_uniform
from compressor.model.stream import BlockStream
from compressor.model.tensors import SINGLE
from compressor.planning.allocation import allocate
from compressor.planning.costs import CLOSE
from compressor.repairing.streaming import Repair
from compressor.scoring.score import score
from compressor.text.tokens import TokenSet
from compressor.writing.cuts import write


def texts(count=9, seed=0) -> TokenSet:
    torch.manual_seed(seed)
    return TokenSet([torch.randint(3, 20, (12 + i % 4,)) for i in range(count)])


@pytest.mark.parametrize("repair", ["none", "ridge"])
def test_the_loss_is_that_of_the_written_checkpoint(any_kinds, tmp_path, repair):
    checkpoint = Checkpoint(any_kinds)
    stream = BlockStream(checkpoint)
    scores = score(checkpoint, "random")
    plan = allocate(scores, checkpoint, Target("keep-blocks", 0.7))
    fitted, judged = texts(), texts(5, seed=1)
    found = loss_after(stream, plan, judged, fitted, repair)
    changes = None if repair == "none" else Repair(stream, plan, fitted, repair).blocks()
    layout = "uniform" if has_uniform(checkpoint.family) else "per-layer"
    write(checkpoint, plan, tmp_path / "out", layout, changes=changes)
    written = BlockStream(Checkpoint(tmp_path / "out"))
    assert found == pytest.approx(math.log(perplexity(written, judged)["perplexity"]), rel=1e-5)


def test_equal_plans_are_measured_once(llama, monkeypatch):
    checkpoint = Checkpoint(llama)
    stream, scores = BlockStream(checkpoint), score(checkpoint, "random")
    narrow, wide = (allocate(scores, checkpoint, Target("keep", k)) for k in (0.6, 0.8))
    measured = []
    monkeypatch.setattr(
        "compressor.measuring.guard.loss_after",
        lambda stream, plan, *_: measured.append(plan) or float(len(measured)),
    )
    found = judge(stream, {"a": narrow, "b": wide, "c": narrow}, texts(), "none", {"b": 7.0})
    assert found == {"a": 1.0, "b": 7.0, "c": 1.0} and measured == [narrow]


@pytest.mark.parametrize("count", [3, 7, 8, 40])
def test_what_is_held_back(count):
    tokens = texts(count)
    others, judged = held_back(tokens)
    assert len(judged.sequences) == max(1, count // JUDGED)
    assert len(others.sequences) + len(judged.sequences) == count


def test_too_little_text_to_hold_any_back():
    with pytest.raises(InputError, match="at least 3 sequences, not 2"):
        held_back(texts(2))


@pytest.fixture
def quick(text_file):
    options = ["--calibration", text_file, "--length", 32, "--samples", 10, "--no-verify"]
    return [str(o) for o in (*options, "--method", "random")]


@pytest.mark.parametrize(
    ("options", "repair"), [(["--layout", "padded"], "none"), ([], "ridge"), ([], "none")]
)
def test_the_best_on_held_back_text_is_taken(llama, quick, tmp_path, capsys, options, repair):
    dest = tmp_path / "out"
    asked = [str(llama), str(dest), "--keep-blocks", "0.6", "--allocate", "exact", *options]
    assert compress(*asked, "--repair", repair, "--json", *quick) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["allocate"] == "exact"
    # One channel in all blocks is 1.25 points.
    assert found["keep_blocks_reached"] == pytest.approx(0.6, abs=0.0125 / 2)
    compared = found["held_back"]
    losses = {row["allocation"]: row["loss"] for row in compared["rows"]}
    assert list(losses)[:3] == ["exact", "uniform", "1 KV groups"]
    assert losses[compared["taken"]] == min(losses.values())
    said = any("held-back sequences" in warning for warning in found["warnings"])
    assert said == (compared["taken"] != "exact")
    record = json.loads((dest / "compression.json").read_text())
    assert record["plan"]["about"]["held_back"] == compared
    row = next(r for r in compared["rows"] if r["allocation"] == compared["taken"])
    ffn = [len(block["ffn"]) for block in record["plan"]["blocks"]]
    assert row["ffn"] == (f"{ffn[0]}" if len({*ffn}) == 1 else f"{min(ffn)} to {max(ffn)}")


def test_a_killed_comparison_goes_on(llama, quick, tmp_path, capsys, monkeypatch):
    import compressor.measuring.guard as guard

    asked = ["--keep", "0.7", "--allocate", "exact", *quick]
    assert compress(llama, tmp_path / "whole", *asked) == 0
    real, measured = guard.loss_after, []

    def killed(*given):
        measured.append(given)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(guard, "loss_after", killed)
    dest = tmp_path / "resumed"
    assert compress(llama, dest, *asked) == 130
    monkeypatch.setattr("compressor.job.planning.measure_landscape", None)
    assert compress(llama, dest, *asked, "--resume") == 0
    for file in (SINGLE, "compression.json"):
        assert same_bytes(dest / file, tmp_path / "whole" / file)


@pytest.mark.parametrize("how", ["exact", "besa"])
def test_a_killed_landscape_goes_on_at_its_last_block(llama, quick, tmp_path, monkeypatch, how):
    from compressor.measuring.landscape import BlockCuts

    asked = ["--keep", "0.7", "--allocate", how, *quick]
    assert compress(llama, tmp_path / "whole", *asked) == 0
    real, visited = BlockCuts.errors, []

    def killed(self, *given):
        visited.append(self)
        if len(visited) == 2:
            raise KeyboardInterrupt
        return real(self, *given)

    monkeypatch.setattr(BlockCuts, "errors", killed)
    dest = tmp_path / "resumed"
    assert compress(llama, dest, *asked) == 130
    assert compress(llama, dest, *asked, "--resume") == 0
    blocks = json.loads((llama / "config.json").read_text())["num_hidden_layers"]
    assert len(visited) == blocks + 1  # one of them twice: the killed one
    for file in (SINGLE, "compression.json"):
        assert same_bytes(dest / file, tmp_path / "whole" / file)


def test_scored_once_planned_many_times(llama, quick, tmp_path, capsys):
    scores = tmp_path / "s.safetensors"
    source = ["score", str(llama), "--out", str(scores), "--allocate", "exact"]
    assert stage(*source, *quick[:-3], *quick[-2:]) == 0
    for keep in ("0.9", "0.7"):
        plan = tmp_path / f"{keep}.json"
        given = ["plan", str(scores), "--keep", keep, "--out", str(plan), "--allocate", "exact"]
        assert stage(*given) == 0
        assert stage(*given, "--layout", "padded") == 0
        reached = json.loads(plan.read_text())["about"]["keep_reached"]
        assert reached == pytest.approx(float(keep), abs=CLOSE)
    assert stage(*given, "--layout", "spiral") == 2
    assert "'spiral' is not one of" in said(capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--samples", "2"], "at least 3 sequences, not 2"),
        (["--statistics", "pruned"], "finds the widths when all are"),
    ],
)
def test_refusals(llama, quick, tmp_path, capsys, options, words):
    dest = str(tmp_path / "out")
    asked = [str(llama), dest, "--keep", "0.7", "--allocate", "exact", *quick, *options]
    assert compress(*asked) == 2
    assert words in said(capsys)
