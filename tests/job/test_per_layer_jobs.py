"""Jobs that write blocks of different widths, and jobs on a checkpoint that has them."""

import json
from pathlib import Path

import pytest
from jobs import compress, said, same_bytes, stage
from transformers import AutoModelForCausalLM

from compressor.analysis.estimate import estimate
from compressor.config.layouts import LAYOUTS
from compressor.job.planning import FREE
from compressor.model.checkpoint import Checkpoint
from compressor.model.per_layer import CODE
from compressor.model.stream import BlockStream
from compressor.model.tensors import SINGLE
from compressor.planning.costs import Costs
from compressor.scoring.methods import CHANNELS, METHODS
from compressor.scoring.score import score
from compressor.text.texts import read_text
from compressor.text.tokens import tokenize
from compressor.verification.child import verify_here


@pytest.fixture(scope="module")
def quick(text_file) -> list:
    return ["--calibration", text_file, "--length", 32, "--samples", 6]


def test_the_whole_job_goes_on_where_it_was_killed(
    llama, quick, text_file, tmp_path, capsys, monkeypatch
):
    asked = ["--keep", 0.7, "--allocate", "global", "--layout", "per-layer", *quick]
    asked += ["--evaluation", text_file, "--json"]
    assert compress(llama, tmp_path / "whole", *asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layout"] == "per-layer" and found["container"] == "mistral"
    assert found["verified"].startswith("logits within") and found["perplexity_after"] > 1
    assert found["parameters_after"] == Checkpoint(tmp_path / "whole").parameters
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "trust_remote_code=True" in card and CODE.name in card

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("compressor.job.result.draw", killed)
    asked += ["--no-verify"]
    assert compress(llama, tmp_path / "again", *asked) == 130
    monkeypatch.undo()
    assert compress(llama, tmp_path / "again", *asked, "--resume") == 0
    for file in (SINGLE, "config.json", CODE.name):
        again, whole = (tmp_path / name / file for name in ("again", "whole"))
        assert same_bytes(again, whole)


def test_all_layouts_of_one_scoring(llama, quick, text_file, tmp_path, capsys, monkeypatch):
    def first(stream, plans, *_) -> dict[str, float]:
        return {name: float(i) for i, name in enumerate(plans)}

    monkeypatch.setattr("compressor.job.planning.judge", first)
    options = ["--layout", "all", "--no-verify", *quick, "--evaluation", text_file, "--json"]
    asked = ["--keep-blocks", 0.6, "--allocate", "exact", "--repair", "none"]
    assert compress(llama, tmp_path / "all", *asked, *options) == 0
    found = {r["layout"]: r for r in json.loads(capsys.readouterr().out)}
    names = {Path(r["dest"]).name for r in found.values()}
    assert names == {f"keep-blocks-0.6-{layout}" for layout in LAYOUTS}
    rows = {row["allocation"] for row in found["nas"]["held_back"]["rows"]}
    assert FREE in rows and found["nas"]["held_back"]["taken"] == "exact"
    nas = Checkpoint(tmp_path / "all" / "keep-blocks-0.6-nas").block_units
    card = (tmp_path / "all" / "keep-blocks-0.6-nas" / "README.md").read_text()
    assert 'vllm serve "this folder" --trust-remote-code' in card
    assert "trust_remote_code=True)" in card
    assert len({u["attention"] for u in nas}) == 1 < len({u["ffn"] for u in nas})
    own, padded = found["per-layer"], found["padded"]
    assert own["perplexity_after"] == pytest.approx(padded["perplexity_after"], rel=1e-5)
    assert own["parameters_after"] < padded["parameters_after"]
    assert found["uniform"]["parameters_after"] <= 1.1 * own["parameters_after"]
    options = ["--keep", 0.8, "--protect", 0, *options]
    assert compress(llama, tmp_path / "protected", *options) == 0
    assert [r["layout"] for r in json.loads(capsys.readouterr().out)] == [*LAYOUTS][1:]
    nas = Checkpoint(tmp_path / "protected" / "keep-0.8-nas").block_units
    assert nas[0] == Checkpoint(llama).units and {u["attention"] for u in nas} == {4}


@pytest.mark.parametrize(
    ("sizes", "options", "words"),
    [
        ({"attention_bias": True}, [], "refuses numbers of heads that differ"),
        ({}, ["--container", "llama"], "leave --container out"),
        ({}, ["--quantize", "w4a16", "--quantize-group", 4], "leave one out"),
    ],
)
def test_refused_before_it_begins(make_checkpoint, tmp_path, capsys, sizes, options, words):
    source = make_checkpoint(tmp_path / "source", **sizes)
    asked = ["--keep", 0.7, "--protect", 0, "--layout", "per-layer", *options]
    assert compress(source, tmp_path / "out", *asked) == 2
    assert words in said(capsys)


CUTS = {
    "uniform": [],
    "global": ["--allocate", "global", "--layout", "per-layer"],
    "exact": ["--allocate", "exact", "--layout", "per-layer"],
    "besa": ["--allocate", "besa", "--layout", "per-layer"],
    "protected": ["--protect", "1", "--layout", "padded"],
    "selected": ["--kv-cost", "measured", "--select", "obs"],
}


@pytest.mark.parametrize("how", CUTS)
def test_it_is_cut_again(unequal, quick, tmp_path, capsys, monkeypatch, how):
    """Against the masked source: blocks of all widths, by their own."""
    monkeypatch.setattr("compressor.measuring.besa.STEPS", 2)
    dest = tmp_path / "again"
    method = "hywia" if how == "global" else "llm-bip"
    keep = 0.75 if "--layout" in CUTS[how] else 0.65  # the narrowest block everywhere leaves 0.675
    asked = ["--keep", keep, "--method", method, "--align", 4, *CUTS[how], *quick]
    assert compress(unequal, dest, *asked, "--no-verify", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert verify_here(dest, unequal)["logits_difference"] <= 1e-3
    # A step of 4 channels in one block, or in all, is more than a point.
    step = 4 * Costs.of(Checkpoint(unequal)).unit["ffn"]["params"] / found["parameters_before"]
    step *= 1 if "--layout" in CUTS[how] else 3
    assert abs(found["keep_reached"] - keep) <= step / 2
    checkpoint, before = Checkpoint(dest), Checkpoint(unequal).block_units
    if how != "protected":
        assert checkpoint.parameters == round(
            found["keep_reached"] * Checkpoint(unequal).parameters
        )
        assert all(
            new[g] <= old[g]
            for new, old in zip(checkpoint.block_units, before, strict=True)
            for g in old
        )
    if "--layout" not in CUTS[how]:
        assert not (dest / CODE.name).exists()
        AutoModelForCausalLM.from_pretrained(dest)


def test_more_than_equal_widths_leave_is_refused(unequal, quick, tmp_path, capsys):
    assert compress(unequal, tmp_path / "again", "--keep", 0.75, "--align", 4, *quick) == 2
    assert "more than equal widths leave" in said(capsys)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("method", [m.name for m in METHODS.values() if CHANNELS in m.units])
def test_every_method_scores_blocks_of_their_own_widths(unequal, text_file, method):
    checkpoint = Checkpoint(unequal)
    tokens = tokenize(read_text(str(text_file)), checkpoint.tokenizer(), 24, 3)
    scores = score(checkpoint, method, None, tokens, BlockStream(checkpoint))
    found = [{g: len(values) for g, values in block.items()} for block in scores.blocks]
    assert found == checkpoint.block_units


def test_equal_widths_that_a_narrow_block_has_not(unequal, quick, tmp_path, capsys):
    assert compress(unequal, tmp_path / "out", "--keep", 0.9, "--align", 24, *quick) == 2
    message = said(capsys)
    assert "begin with 1 KV groups and 24 FFN channels, and a block has 1 and 20" in message


@pytest.mark.parametrize("options", [["--sparsity", 0.5], ["--quantize", "w4a16"]])
def test_what_takes_equal_blocks_says_so(unequal, tmp_path, capsys, options):
    assert compress(unequal, tmp_path / "out", *options) == 2
    assert "takes checkpoints of equal blocks" in said(capsys)


def test_it_is_recovered(unequal, quick, tmp_path, capsys):
    dest = tmp_path / "recovered"
    options = ["--recover", "lora", "--recover-steps", 4, "--recover-batch", 2]
    asked = ["recover", unequal, dest, *quick[:4], *options]
    assert stage(*asked) in (0, 3)
    if dest.exists():
        assert same_bytes(dest / CODE.name, CODE)
        assert Checkpoint(dest).block_units == Checkpoint(unequal).block_units


def test_what_it_costs(unequal):
    model = estimate(unequal, device="h200", context=32)["models"][0]
    assert [row["ffn"] for row in model["parts"][1:-1]] == [20, 32, 48]
    assert model["total"]["parameters"] == Checkpoint(unequal).parameters
