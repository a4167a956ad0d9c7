"""What source and result write after the same beginnings: as plain transformers does, or why not."""

import json
from types import SimpleNamespace

import pytest
import torch
from jobs import compress

from compressor.config.runtime import Runtime
from compressor.job import continuing
from compressor.job.continuing import BEGINNING, BEGINNINGS, WRITTEN, beginnings, why_not
from compressor.model.checkpoint import Checkpoint
from compressor.model.loading import load
from compressor.report.page import PAGE
from compressor.text.texts import read_text
from compressor.text.tokens import TokenSet, tokenize

JOB = ("--method", "random", "--repair", "none", "--keep", 0.7, "--length", 32, "--samples", 4)


def written(folder, ids: torch.Tensor) -> tuple[str, str]:
    """A beginning's text and what follows, by transformers alone: token by token, without a cache."""
    model, tokenizer = load(folder)
    ids, begun = ids[None], len(ids)
    with torch.no_grad():
        for _ in range(WRITTEN):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    new = ids[0, begun:].tolist()
    new = new[: new.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in new else new
    said, whole = (
        tokenizer.decode(part, skip_special_tokens=True)
        for part in (ids[0, :begun].tolist(), [*ids[0, :begun].tolist(), *new])
    )
    return said, whole[len(said) :]


def test_both_models_go_on_with_the_text(llama, text_file, tmp_path, capsys):
    dest = tmp_path / "small"
    texts = ("--calibration", text_file, "--evaluation", text_file)
    assert compress(llama, dest, *JOB, *texts, "--max-perplexity-ratio", "off") == 0
    shown = " ".join(capsys.readouterr().out.split())
    run = json.loads((dest / "compression.json").read_text())["run"]
    assert len(run["samples"]) == BEGINNINGS and run["no_samples"] == ""
    page = (dest / PAGE).read_text()
    assert "Both models on the same beginning" in page
    tokens = tokenize(read_text(str(text_file)), Checkpoint(llama).tokenizer(), 32)
    for sample, ids in zip(run["samples"], beginnings(tokens), strict=True):
        assert (sample["prompt"], sample["before"]) == written(llama, ids)
        assert (sample["prompt"], sample["after"]) == written(dest, ids)
    assert "beginning" in shown and " source " in shown
    assert f"Next: read {dest / PAGE} compressor eval {dest}" in shown
    assert f"--against {llama}" in shown and f"vllm serve {dest}" in shown


def test_a_job_does_not_end_by_what_it_cannot_write(
    llama, text_file, tmp_path, monkeypatch, capsys
):
    def broken(*_):
        raise RuntimeError("no such head")

    monkeypatch.setattr(continuing, "continuations", broken)
    texts = ("--calibration", text_file, "--evaluation", text_file)
    assert compress(llama, tmp_path / "out", *JOB, *texts, "--max-perplexity-ratio", "off") == 0
    assert "There are no samples: no such head." in capsys.readouterr().out
    assert "no such head" in (tmp_path / "out" / PAGE).read_text()


def job(llama, memory=10**12, **changed) -> SimpleNamespace:
    """As much of a job as decides whether something is written."""
    found = {
        "config": SimpleNamespace(runtime=Runtime(**changed)),
        "checkpoint": SimpleNamespace(whole=Checkpoint(llama)),
        "evaluation": TokenSet([torch.arange(9)]),
        "foreseen": SimpleNamespace(memory=memory),
    }
    return SimpleNamespace(**found)


def test_why_nothing_is_written(llama):
    assert why_not(job(llama)) == ""
    assert "--no-verify" in why_not(job(llama, verify=False))
    assert "the whole model takes 124 KB of memory" in why_not(job(llama, memory=1000))
    assert "more than the job does" in why_not(job(llama, max_memory=1000.0))
    alone = job(llama)
    alone.evaluation = None
    assert "no evaluation text" in why_not(alone)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([40] * 9, (3, BEGINNING)), ([40, 12], (1, BEGINNING)), ([12, 8], (2, 4)), ([2], (1, 1))],
)
def test_beginnings_are_equally_long(lengths, expected):
    found = beginnings(TokenSet([torch.arange(n) + 100 * i for i, n in enumerate(lengths)]))
    assert tuple(found.shape) == expected
    assert torch.equal(found - found[:, :1], torch.arange(expected[1]).expand(*expected))
