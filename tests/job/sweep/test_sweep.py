"""Sweeps from their file to their table: what they share, keep, resume and pick."""

import csv
import io
import json
import re
import shutil
import signal

import pytest
from jobs import compress, said, same_bytes, same_files, stage
from rich.console import Console

from compressor.errors import MachineError
from compressor.job.sweep import running
from compressor.report.swept import Row, table


@pytest.fixture(scope="module")
def common(llama, text_file) -> str:
    return (
        f"source: {llama}\ncalibration: {text_file}\nlength: 32\nsamples: 4\nrepair: ridge\n"
        "verify: false\n"
    )


@pytest.fixture(scope="module")
def swept(common, tmp_path_factory):
    """The folder of a sweep of two methods, each at two ratios."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "sweep.yaml").write_text(common + "method: [llm-bip, magnitude]\nkeep: [0.9, 0.8]\n")
    assert stage("sweep", folder / "sweep.yaml", folder / "out") == 0
    return folder / "out"


@pytest.fixture
def again(swept, tmp_path):
    """A copy of it, and its file, to go on with."""
    shutil.copytree(swept.parent, tmp_path / "swept")
    return tmp_path / "swept"


def rows_of(dest) -> dict:
    return {row["name"]: row for row in json.loads((dest / "sweep.json").read_text())["rows"]}


def test_the_table_has_every_result(swept):
    rows = rows_of(swept)
    assert [*rows] == [
        "llm-bip-keep-0.9", "llm-bip-keep-0.8", "magnitude-keep-0.9", "magnitude-keep-0.8"
    ]  # fmt: skip
    for name, row in rows.items():
        record = json.loads((swept / name / "compression.json").read_text())
        assert row["state"] == "done" and row["perplexity"] == record["perplexity_after"]
        assert row["parameters"] == record["parameters_after"] and row["flops_per_token"] > 0
        assert row["kl"] > 0 and 0 < row["agreement"] <= 1 and row["seconds"] > 0
    with (swept / "sweep.csv").open(newline="") as file:
        table = [*csv.DictReader(file)]
    assert [(row["name"], float(row["keep"])) for row in table] == [
        (name, row["options"]["keep"]) for name, row in rows.items()
    ]
    page = (swept / "sweep.html").read_text()
    assert "<svg" in page and not re.findall(r"(?:src|href)=.http", page)
    links = re.findall(r'<a href="(.*?)"', page)
    assert len(links) == len(rows) and all((swept / link).is_file() for link in links)
    assert all(name in page for name in rows)
    assert (swept / "sweep.svg").stat().st_size > 5000


def test_the_terminal_shows_all_in_80_columns(swept):
    rows = [Row(**row) for row in rows_of(swept).values()]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(rows, "source"))
    shown = console.export_text()
    for row in rows:
        assert f"{row.perplexity:.2f} ({row.times:.3f}x)" in shown and f"{row.kl:.4f}" in shown
    assert "…" not in shown


def test_what_is_no_longer_asked_for_is_told(again, capsys):
    text = (again / "sweep.yaml").read_text().replace("keep: [0.9, 0.8]", "keep: [0.9]")
    (again / "sweep.yaml").write_text(text)
    assert stage("sweep", again / "sweep.yaml", again / "out", "--resume") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "llm-bip-keep-0.8, magnitude-keep-0.8 in" in told and "stand in no table" in told
    assert [*rows_of(again / "out")] == ["llm-bip-keep-0.9", "magnitude-keep-0.9"]


def test_scores_are_shared_and_results_are_those_of_compress(swept, llama, quick, tmp_path):
    """A method's second ratio scores nothing, and is the same to the byte."""
    assert len([*(swept / "shared").glob("*-scores.safetensors")]) == 2
    took = json.loads((swept / "llm-bip-keep-0.8" / "compression.json").read_text())["run"][
        "seconds"
    ]
    assert "score" not in took and "select" not in took
    same = "--repair", "ridge", "--method", "llm-bip"
    assert compress(llama, tmp_path / "one", "--keep", 0.8, *quick, *same) == 0
    for file in (tmp_path / "one").iterdir():
        assert same_bytes(file, swept / "llm-bip-keep-0.8" / file.name), file.name
    assert same_files(tmp_path / "one", swept / "llm-bip-keep-0.8")


def test_what_is_finished_is_not_made_again(again, common, capsys):
    """Also where more is asked for later: it keeps its name, and the new ones are made."""
    before = {f: f.stat().st_mtime_ns for f in (again / "out").glob("*/model.safetensors")}
    (again / "sweep.yaml").write_text(common + "method: llm-bip\nkeep: [0.9, 0.8, 0.7]\n")
    assert stage("sweep", again / "sweep.yaml", again / "out", "--resume") == 0
    assert "keep-0.7, 1 of 1" in said(capsys)
    assert [*rows_of(again / "out")] == ["llm-bip-keep-0.9", "llm-bip-keep-0.8", "keep-0.7"]
    assert {f: f.stat().st_mtime_ns for f in before} == before


def test_a_sweep_that_is_there_is_not_made_over(again, capsys):
    arguments = "sweep", again / "sweep.yaml", again / "out"
    assert stage(*arguments) == 2
    assert "holds a sweep; add --resume to go on with it, or --overwrite" in said(capsys)
    assert stage(*arguments, "--resume", "--overwrite") == 2
    (again / "out" / "sweep.json").write_text('{"rows": [{"name": "../x", "options": {}}]}')
    assert stage(*arguments, "--resume") == 2
    assert "is not what this package writes" in said(capsys)
    (again / "out" / "sweep.json").unlink()
    assert stage(*arguments, "--overwrite") == 2
    assert "exists and holds no sweep" in said(capsys)


def test_results_are_made_anew(common, tmp_path):
    """With other options, too: what is there by the same name is not taken for finished."""
    file, dest = tmp_path / "sweep.yaml", tmp_path / "out"
    for seed, more in ((0, []), (1, ["--overwrite"])):
        file.write_text(common + f"method: magnitude\nkeep: 0.8\nseed: {seed}\n")
        assert stage("sweep", file, dest, *more) == 0
        assert [*rows_of(dest)] == ["keep-0.8"]
        record = json.loads((dest / "keep-0.8" / "compression.json").read_text())
        assert record["settings"].get("seed", 0) == seed


def test_another_source_is_not_taken_for_the_same(again, make_checkpoint, llama, capsys):
    text = (again / "sweep.yaml").read_text()
    make_checkpoint(again / "model", hidden_size=48)
    (again / "sweep.yaml").write_text(text.replace(str(llama), str(again / "model")))
    assert stage("sweep", again / "sweep.yaml", again / "out", "--resume") == 2
    assert "is not what the results in" in said(capsys)


def test_the_smallest_that_holds_is_picked(again, capsys):
    arguments = "sweep", again / "sweep.yaml", again / "out", "--resume", "--pick"
    rows = rows_of(again / "out")
    limit = max(row["kl"] for row in rows.values())
    assert stage(*arguments, f"kl <= {limit}", "--json") == 0
    name = json.loads(capsys.readouterr().out)["picked"]
    least = min(row["bytes"] for row in rows.values())
    smallest = [name for name, row in rows.items() if row["bytes"] == least]
    assert len(smallest) == 2 and name == min(smallest, key=lambda name: rows[name]["kl"])
    assert same_files(again / "out" / "picked", again / "out" / name)
    assert stage(*arguments, "kl <= 0") == 3
    nearest = min(rows, key=lambda name: rows[name]["kl"])
    assert f"No result has kl <= 0; the nearest is {nearest} with" in said(capsys)
    assert not (again / "out" / "picked").exists()
    assert stage(*arguments, "kl is low") == 2
    (again / "sweep.yaml").write_text("source: m\nkeep: 0.9\nevaluation: none\n")
    assert stage(*arguments, "kl <= 1") == 2
    assert "--pick needs results that are measured" in said(capsys)


def test_a_result_that_fails_is_a_row_and_others_go_on(common, tmp_path, capsys, monkeypatch):
    """One that cannot be so small, one that the machine fails, one that is worse than allowed."""

    def run_job(config, lines, shelf, run=running.run_job):
        if config.runtime.seed == 1:
            raise MachineError("The disk is full.")
        return run(config, lines, shelf)

    monkeypatch.setattr(running, "run_job", run_job)
    (tmp_path / "sweep.yaml").write_text(
        common + "method: magnitude\nruns: [{keep: 0.01}, {keep: 0.8, seed: 1}, {keep: 0.8}, "
        "{keep: 0.9, max-perplexity-ratio: 0.1}]\n"
    )
    assert stage("sweep", tmp_path / "sweep.yaml", tmp_path / "out", "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert "3 of 4 results are not as asked" in told["error"]["sentence"]
    states = [(row["state"], row["exit_code"]) for row in told["results"]]
    assert states == [("failed", 2), ("failed", 4), ("done", 0), ("rejected", 3)]
    assert told["results"][1]["sentence"] == "The disk is full."
    assert "more than --max-perplexity-ratio allows" in told["results"][3]["sentence"]
    monkeypatch.undo()  # the disk has room again
    text = (tmp_path / "sweep.yaml").read_text().replace("{keep: 0.01}, ", "")
    (tmp_path / "sweep.yaml").write_text(text)
    assert stage("sweep", tmp_path / "sweep.yaml", tmp_path / "out", "--resume") == 3
    states = [row["state"] for row in rows_of(tmp_path / "out").values()]
    assert states == ["done", "done", "rejected"]


def test_an_interrupted_sweep_goes_on(common, tmp_path, capsys, monkeypatch):
    """A signal that comes while the first result is published counts when the next one begins."""

    def run_job(config, lines, shelf, run=running.run_job):
        run(config, lines, shelf)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(running, "run_job", run_job)
    (tmp_path / "sweep.yaml").write_text(common + "method: magnitude\nkeep: [0.9, 0.8]\n")
    arguments = "sweep", tmp_path / "sweep.yaml", tmp_path / "out"
    assert stage(*arguments) == 130
    assert "interrupted. 1 of 2 results are in" in said(capsys)
    assert [row["state"] for row in rows_of(tmp_path / "out").values()] == ["done", "waiting"]
    monkeypatch.undo()
    assert stage(*arguments, "--resume") == 0
    assert "keep-0.8, 1 of 1" in said(capsys)


def test_what_no_source_makes_right_is_refused_at_once(common, tmp_path, capsys):
    (tmp_path / "sweep.yaml").write_text(common + "method: [llm-bip, lm-bip]\nkeep: 0.9\n")
    assert stage("sweep", tmp_path / "sweep.yaml", tmp_path / "out") == 2
    assert "method lm-bip, keep 0.9: The method 'lm-bip' is not one of" in said(capsys)
    assert not (tmp_path / "out").exists()
