"""What a job opens before it works: a second text beside the first, a place for activations."""

import json
from pathlib import Path

import pytest
import torch
from jobs import compress, said, stage

from compressor.job.opening import place


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
        assert given["source"] == one.name and given["also"]["source"] == other.name
        assert given["tokens"] == given["also"]["tokens"] == 12 * 32


def test_another_second_text_is_another_job(llama, texts, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    one, other, _ = texts
    asked = llama, tmp_path / "out", "--calibration", one, "--calibration-also", other
    with monkeypatch.context() as patched:
        patched.setattr("compressor.job.result.write_folder", interrupt)
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


@pytest.fixture
def halves(tmp_path):
    """Texts of which two hold half a character, and nothing that is no letter besides."""
    texts = ["the first text, of many letters, and some more of them"] * 12
    texts[3] += "\ud83d"
    texts[7] = "\udc00" + texts[7]
    path = tmp_path / "halves.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


def texts_of(llama, out, halves, text_file) -> dict:
    """Every option that takes a text, with its command."""
    plan = ("--keep", 0.7, "--repair", "none", "--length", 32, "--no-verify", "--json")
    cut = (llama, out / "dest", "--calibration", halves, "--length", 32, "--no-verify")
    recover = ("--calibration", text_file, "--length", 32, "--no-verify", "--recover-steps", 1)
    return {
        "--calibration": lambda: compress(llama, out / "dest", *plan, "--calibration", halves),
        "--calibration-also": lambda: compress(
            llama, out / "dest", *plan, "--calibration", text_file, "--calibration-also", halves
        ),
        "--evaluation": lambda: compress(
            llama, out / "dest", *plan, "--calibration", text_file, "--evaluation", halves
        ),
        "sparsify": lambda: compress(
            llama, out / "dest", "--method", "wanda", "--sparsity", 0.5,
            *plan[4:], "--calibration", halves
        ),
        "--recover-data": lambda: compress(
            llama, out / "dest", *plan, *recover, "--recover", "lora", "--recover-data", halves
        ),
        "score": lambda: stage(
            "score", llama, "--out", out / "s.safetensors", *cut[2:6]
        ),
        "eval": lambda: stage("eval", llama, "--text", halves, "--length", 32),
        "eval --json": lambda: stage("eval", llama, "--text", halves, "--length", 32, "--json"),
    }  # fmt: skip


@pytest.mark.parametrize("option", texts_of(*[Path()] * 4))
def test_halves_of_characters_are_read_as_what_is_not_known(
    llama, tmp_path, halves, text_file, capsys, option
):
    assert texts_of(llama, tmp_path, halves, text_file)[option]() == 0
    found = " ".join(capsys.readouterr().out.split())
    assert f"2 were read as U+FFFD (Line 4 of {halves} has the first)" in found


def test_cut_says_what_was_read(llama, tmp_path, halves, capsys):
    scores, plan = tmp_path / "s.safetensors", tmp_path / "p.json"
    short = ("--calibration", halves, "--length", 32, "--samples", 99)
    assert stage("score", llama, "--out", scores, *short) == 0
    assert stage("plan", scores, "--keep", 0.7, "--out", plan) == 0
    capsys.readouterr()
    assert stage("cut", llama, tmp_path / "cut", "--plan", plan, *short, "--no-verify") == 0
    found = capsys.readouterr().out
    assert "2 were read as U+FFFD" in found
    assert f"--samples asks for 99 sequences, and {halves} gives 9: these were used." in found


@pytest.mark.parametrize(
    ("kind", "asked", "given"),
    [("json", 21, 15), ("json", 12, None), ("json", None, None), ("txt", 60, 40), ("txt", 4, None)],
)
def test_fewer_sequences_than_were_asked_for(llama, tmp_path, capsys, kind, asked, given):
    text = documents(tmp_path / "text.json", "a text of as many letters as it needs", 20)
    if kind == "txt":
        text = tmp_path / "text.txt"
        text.write_text("a line of letters\n" * 84)  # 1,512 tokens in windows of 31
    samples = () if asked is None else ("--samples", asked)
    job = (llama, tmp_path / "out", "--keep", 0.7, "--repair", "none", "--length", 32)
    assert compress(*job, "--calibration", text, *samples, "--no-verify", "--json") == 0
    said = [w for w in json.loads(capsys.readouterr().out)["warnings"] if "--samples" in w]
    expected = f"--samples asks for {asked} sequences, and {text} gives {given}: these were used."
    assert said == ([] if given is None else [expected])
