"""A tokenizer that cannot be read, or is of another model, in a sentence that names its file."""

import json
import shutil
import sys

import pytest
from jobs import compress, said

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.text import tokenizer as reading
from compressor.verification.child import verify_here

FILE = "tokenizer.json"
PIECES = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"  # as sentencepiece writes them
RANKS = b"IQ== 0\nIg== 1\n"  # as tiktoken does


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


def without(folder, *names):
    for name in names:
        (folder / name).unlink()
    return folder


def edited(folder, **changes):
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return folder


def test_no_tokenizer(copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match=r"has no tokenizer \(none of tokenizer\.json, "):
        Checkpoint(copy).tokenizer()


def test_a_config_alone_is_none(copy):
    """transformers would make a Llama tokenizer of three tokens of it."""
    edited(without(copy, FILE), tokenizer_class="LlamaTokenizer")
    with pytest.raises(InputError, match=r"has no tokenizer \(none of tokenizer\.json, "):
        Checkpoint(copy).tokenizer()


@pytest.mark.parametrize(
    ("content", "lacking", "message"),
    [
        (PIECES, {"sentencepiece", "google.protobuf"}, "pip install sentencepiece protobuf;"),
        (PIECES, {"google.protobuf"}, "pip install protobuf;"),
        (RANKS, {"tiktoken", "sentencepiece"}, "pip install tiktoken;"),
    ],
)
@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model"])
def test_packages_that_its_file_needs(copy, monkeypatch, content, lacking, message, name):
    monkeypatch.setattr(reading, "installed", lambda module: module not in lacking)
    (without(copy, FILE) / name).write_bytes(content)
    with pytest.raises(InputError, match=f"is {name} alone, .*{message} or put the model's token"):
        Checkpoint(copy).tokenizer()


def test_what_is_installed():
    assert reading.installed("torch") and reading.installed("torch.nn")
    assert not reading.installed("no_such_package") and not reading.installed("no_such.module")


def test_a_vocabulary_without_merges(copy):
    (without(copy, FILE) / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(InputError, match=r"half there: vocab\.json without merges\.txt"):
        Checkpoint(copy).tokenizer()


@pytest.mark.parametrize("content", ["{}", "{", "[]", '{"model": {"type": "Other"}}'])
def test_a_file_that_is_no_tokenizer(copy, content):
    (copy / FILE).write_text(content)
    with pytest.raises(InputError, match=rf"The tokenizer in \S+ \({FILE}\) does not load: "):
        Checkpoint(copy).tokenizer()


def test_a_broken_config_of_it(copy):
    (copy / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match="does not load: Expecting property name"):
        Checkpoint(copy).tokenizer()


def test_code_of_its_own_is_not_run(copy):
    edited(copy, tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})
    (copy / "own.py").write_text("import sys\nsys.ran_own = True\nclass Own: pass\n")
    with pytest.raises(InputError, match="is code of its own, which is not run"):
        Checkpoint(copy).tokenizer()
    assert not hasattr(sys, "ran_own")


@pytest.mark.parametrize("token", ["bos_token", "eos_token"])
def test_a_special_token_that_the_vocabulary_lacks(make_checkpoint, tmp_path, token):
    folder = make_checkpoint(tmp_path / "model", vocab_size=99)  # as many as the tokenizer has
    assert len(Checkpoint(folder).tokenizer()) == 99
    edited(folder, **{token: "<another>"})
    with pytest.raises(InputError, match=rf"its {token} '<another>' the id 99, .* 99 rows"):
        Checkpoint(folder).tokenizer()


def test_a_tokenizer_of_a_larger_model(copy):
    content = json.loads((copy / FILE).read_text())
    content["model"]["vocab"]["e"] = 7000
    (copy / FILE).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"gives 'e' the id 7000, .* 120 rows: it is of another"):
        Checkpoint(copy).tokenizer()


def test_verification_says_so_too(copy):
    """A prompt would look for rows that the embedding does not have."""
    content = json.loads((copy / FILE).read_text())
    content["model"]["vocab"]["e"] = 7000
    (copy / FILE).write_text(json.dumps(content))
    with pytest.raises(InputError, match="gives 'e' the id 7000"):
        verify_here(copy)


def test_a_job_without_texts_needs_one_for_its_proof(copy, tmp_path, capsys):
    """Nothing is written before it is known that what is written can be verified."""
    without(copy, FILE)
    job = (copy, tmp_path / "out", "--keep", 0.7, "--method", "magnitude", "--repair", "none")
    assert compress(*job) == 2
    assert "has no tokenizer" in said(capsys)
    assert compress(*job, "--no-verify", "--evaluation", "none") == 0
