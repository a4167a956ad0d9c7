"""The stage `recover` on its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jobs import compress, detailed, left_over, said, same_bytes, same_files, stage
from safetensors.torch import load_file

from compressor.model.tensors import SINGLE

TRAINED = Path(__file__).parents[2] / "examples/tiny-llama"


@pytest.mark.parametrize("method", ["lora", "distill"])
def test_the_stage_alone_gives_the_same(
    llama, options, unrecovered, alone, text_file, tmp_path, capsys, method
):
    whole, cut, dest = (tmp_path / n for n in ("whole", "cut", "dest"))
    measured = ("--evaluation", text_file)
    assert compress(llama, whole, "--keep", 0.7, *options, *measured, "--recover", method) == 0
    assert compress(llama, cut, "--keep", 0.7, *unrecovered) == 0
    before = {p.name: p.read_bytes() for p in cut.iterdir()}
    capsys.readouterr()
    options = [*alone, "--recover", method, "--source", llama, *measured]
    assert stage("recover", cut, dest, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["perplexity_after"] < found["perplexity_pruned"]
    assert same_bytes(dest / SINGLE, whole / SINGLE)
    assert {p.name: p.read_bytes() for p in cut.iterdir()} == before
    record = json.loads((dest / "compression.json").read_text())
    assert record["recovery"]["kept"] and record["plan"]
    assert left_over(dest) == ["dest"]


def test_without_a_text_it_measures_on_what_is_set_aside(
    llama, unrecovered, alone, tmp_path, capsys
):
    cut, dest = tmp_path / "cut", tmp_path / "dest"
    assert compress(llama, cut, "--keep", 0.7, *unrecovered) == 0
    capsys.readouterr()
    assert stage("recover", cut, dest, *alone, "--recover", "lora") == 0
    found = json.loads(capsys.readouterr().out)
    assert 1 < found["perplexity_after"] != found["perplexity_pruned"] > 1
    assert stage("recover", cut, tmp_path / "none", *alone, "--evaluation", "none") == 0
    assert json.loads(capsys.readouterr().out)["perplexity_after"] is None


def test_the_stage_that_makes_it_worse_writes_nothing(alone, tmp_path, capsys):
    dest = tmp_path / "dest"
    assert stage("recover", TRAINED, dest, *alone, "--learning-rate", 1.0) == 3
    assert "went from" in said(capsys)
    assert left_over(dest) == []


def test_the_stage_is_resumed(llama, alone, tmp_path, dies_after_a_save):
    assert stage("recover", llama, tmp_path / "dest", *alone) == 130
    assert stage("recover", llama, tmp_path / "dest", *alone, "--resume") == 0
    assert stage("recover", llama, tmp_path / "whole", *alone) == 0
    assert same_files(tmp_path / "dest", tmp_path / "whole")


def test_the_stage_refuses_what_it_cannot_do(llama, alone, tmp_path, capsys, make_checkpoint):
    dest = tmp_path / "dest"
    assert stage("recover", llama, dest, *alone, "--recover", "distill") == 2
    assert "name it with --source" in said(capsys)
    assert stage("recover", llama, dest, *alone, "--recover", "none") == 2
    assert "--recover none trains nothing" in said(capsys)
    other = make_checkpoint(tmp_path / "other", vocab_size=130)
    options = [*alone, "--recover", "distill", "--source", other]
    assert stage("recover", llama, dest, *options) == 2
    assert "must be what it was cut from" in said(capsys)
    assert left_over(dest) == []


@pytest.mark.slow
def test_two_processes_train_what_one_does(llama, alone, tmp_path):
    """Started by torchrun; sums of gradients differ in their order alone."""
    options = detailed([str(o) for o in [*alone, "--lora-dropout", 0]], tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for name, launcher in (("one", [sys.executable]), ("two", torchrun)):
        command = [*launcher, "-m", "compressor", "recover", str(llama), str(tmp_path / name)]
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / SINGLE) for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-3)


def test_ranks_that_nobody_has_started(llama, options, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert compress(llama, tmp_path / "out", "--keep", 0.7, *options) == 2
    assert "WORLD_SIZE is 2, and not all that goes with it is set" in said(capsys)
