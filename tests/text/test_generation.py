"""Text that a model writes itself: whose it is, where it ends, and what is refused."""

import json

import psutil
import pytest
import torch
from jobs import said, stage
from transformers import AutoModelForCausalLM, AutoTokenizer

from compressor.errors import InputError
from compressor.text import generation
from compressor.text.generation import sample, written
from compressor.text.texts import read_text


def opened(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def test_tokens_are_drawn_from_the_models_own_distribution(llama):
    model, _ = opened(llama)
    begin = torch.ones(1, 1, dtype=torch.long)
    model.lm_head.weight *= 2 / model(begin).logits.std()  # so that it prefers some tokens by far
    rows = torch.tensor(sample(model, 1, [2], 64, 16, seed=0))
    logs = model(torch.cat((torch.ones(len(rows), 1, dtype=torch.long), rows), 1)).logits
    logs = logs[:, :-1].log_softmax(-1)
    given = torch.cat((torch.ones(len(rows), 1).bool(), rows[:, :-1] != 2), 1)  # or an opening is
    assert (rows[~given] == 1).all() and not given.all()
    spent = -logs.gather(2, rows[..., None])[..., 0][given]
    mean = -(logs.exp() * logs).sum(-1)[given]
    # What a token costs is its distribution's entropy in the mean.
    deviation = (spent - mean).std() / len(spent) ** 0.5
    assert len(spent) > 300 and 1 < mean.mean() < 4
    assert abs(spent.mean() - mean.mean()) < 4 * deviation


def test_a_document_ends_before_an_end_and_at_the_length(llama):
    model, tokenizer = opened(llama)
    found = list(written(model, tokenizer, 600, 12, seed=0))
    counts = [count for _, count in found]
    assert sum(counts) >= 600 > sum(counts[:-1])
    assert max(counts) == 12 and min(counts) >= 2
    for text, _ in found:
        assert text.strip() and "</s>" not in text and "<s>" not in text


def test_the_seed_decides_and_nobody_elses_numbers_change(llama):
    model, tokenizer = opened(llama)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (list(written(model, tokenizer, 900, 8, seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), wanted)
    assert one == same != other
    assert len(set(one)) > generation.BATCH  # the second batch is not the first again


def test_a_model_that_writes_nothing(llama):
    model, tokenizer = opened(llama)
    model.generation_config.eos_token_id = list(range(model.config.vocab_size))
    with pytest.raises(InputError, match="every document of 104 rows of 8 tokens before"):
        list(written(model, tokenizer, 100, 8, seed=0))
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(InputError, match="neither BOS nor EOS"):
        list(written(model, tokenizer, 100, 8, seed=0))


def test_the_stage_writes_what_calibration_reads(llama, tmp_path, capsys):
    out = tmp_path / "own.jsonl"
    assert stage("generate", llama, out, "--tokens", 300, "--device", "cpu") == 0
    assert f"DEST [--calibration TEXT] --calibration {out}" in capsys.readouterr().out
    text = read_text(str(out))
    model, tokenizer = opened(llama)
    positions = model.config.max_position_embeddings  # fewer than --length
    wanted = [document for document, _ in written(model, tokenizer, 300, positions, seed=0)]
    assert text.strings == wanted and text.kind == "documents"
    assert not list(tmp_path.glob("*.partial"))


def test_what_is_refused(llama, tmp_path, monkeypatch, capsys):
    taken = tmp_path / "there.jsonl"
    taken.write_text(json.dumps({"text": "kept"}) + "\n")
    new = tmp_path / "new.jsonl"
    for code, words, message in (
        (2, (taken,), "is there already"),
        (2, (tmp_path / "new.txt",), "name it *.jsonl, not new.txt"),
        (2, (tmp_path / "no" / "new.jsonl",), "There is no folder"),
        (2, (new, "--tokens", 0), "--tokens is 0; it must be at least 1"),
        (2, (new, "--length", 1), "--length is 1; it must be at least 2"),
        (4, (new, "--device", "cuda:99"), "The device 'cuda:99' cannot be used"),
    ):
        assert stage("generate", llama, *words) == code
        assert message in said(capsys)
    memory = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert stage("generate", llama, new, "--device", "cpu") == 4
    assert "calibrate on a text (--calibration TEXT), or free some" in said(capsys)
    assert not new.exists() and json.loads(taken.read_text()) == {"text": "kept"}
