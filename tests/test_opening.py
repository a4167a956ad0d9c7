"""What a job opens before it works: a second text beside the first, a place for activations."""

import json

import pytest
import torch
from jobs import compress, said

from compressor.opening import place


def documents(file, letters: str, count: int = 12):
    """A list of so many documents of the same length in tokens."""
    file.write_text(json.dumps([letters[i % 5 :] + letters[: i % 5] for i in range(count)]))
    return file


@pytest.fixture
def texts(tmp_path):
    one = documents(tmp_path / "one.json", "the first text, of many letters")
    other = documents(tmp_path / "other.json", "a second one; it is as many too", 20)
    both = json.loads(one.read_text()) + json.loads(other.read_text())[:12]
    (tmp_path / "both.json").write_text(json.dumps(both))
    return one, other, tmp_path / "both.json"


def short(*arguments) -> int:
    return compress(
        *arguments, "--keep", 0.7, "--length", 32, "--evaluation", "none", "--no-verify"
    )


def tensors(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_second_text_counts_as_much_as_the_first(llama, texts, tmp_path):
    one, other, both = texts
    apart, together = tmp_path / "apart", tmp_path / "together"
    assert short(llama, apart, "--calibration", one, "--calibration-also", other) == 0
    assert short(llama, together, "--calibration", both) == 0
    assert tensors(apart) == tensors(together)
    record = json.loads((apart / "compression.json").read_text())
    for given in (
        record["plan"]["about"]["scores"]["calibration"],
        record["repair"]["calibration"],
    ):
        assert given["source"] == str(one) and given["also"]["source"] == str(other)
        assert given["tokens"] == given["also"]["tokens"] == 12 * 32


def test_another_second_text_is_another_job(llama, texts, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    one, other, _ = texts
    asked = llama, tmp_path / "out", "--calibration", one, "--calibration-also", other
    with monkeypatch.context() as patched:
        patched.setattr("compressor.result.write", interrupt)
        assert short(*asked) == 130
    kept = other.read_text()
    documents(other, "something else that is not that")
    assert short(*asked, "--resume") == 2
    assert "the SHA-256 of its texts" in said(capsys)
    other.write_text(kept)
    assert short(*asked, "--resume") == 0


def test_a_second_text_that_is_not_there(llama, texts, tmp_path, capsys):
    asked = llama, tmp_path / "out", "--calibration", texts[0], "--calibration-also", "none.json"
    assert short(*asked) == 2
    assert "There is no file 'none.json'" in said(capsys)


@pytest.mark.parametrize(
    ("needed", "device", "kept"),
    [
        (250, "cuda:1", "the GPU"),
        (251, "cuda:1", "host memory"),
        (2501, "cuda:1", "files"),
        (2500, "cpu", "host memory"),
        (2501, "cpu", "files"),
    ],
)
def test_activations_are_where_there_is_room(tmp_path, monkeypatch, needed, device, kept):
    """Of a GPU with 1,000 bytes free and a host with 10,000."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    places = {"the GPU": torch.device("cuda:1"), "host memory": None, "files": tmp_path}
    assert place(needed, device, 10_000, tmp_path) == places[kept]
