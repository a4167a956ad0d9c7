"""The class that a result's tokenizer_config.json names, so that transformers 4.57 reads it."""

import json
import shutil

import pytest
from edits import edit_json
from jobs import same_bytes
from transformers import AutoTokenizer

from compressor.analysis.inspection import inspect
from compressor.model.checkpoint import Checkpoint
from compressor.planning.plan import Plan
from compressor.writing.cuts import write
from compressor.writing.tokenizer_class import (
    CONFIG,
    FILE,
    NEUTRAL,
    STRINGS,
    class_notes,
    ids_of,
    known_to_older,
    older_ids,
    strings,
)


@pytest.fixture
def source(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "source")


def written(source, folder, container: str = "auto", groups=(0, 1, 2, 3)):
    """A result with these KV groups, and its tokenizer_config.json."""
    checkpoint = Checkpoint(source)
    write(
        checkpoint,
        Plan([{"attention": list(groups), "ffn": [*range(32)]}] * 3),
        folder,
        container=container,
    )
    return json.loads((folder / CONFIG).read_text())


def older(folder) -> tuple[bool, str]:
    return next(
        (a["loads"], a["because"]) for a in inspect(folder)["loads"] if "4.57" in a["target"]
    )


def test_a_tokenizer_of_transformers_5_goes_out_under_a_class_that_all_have(source, tmp_path):
    before = json.loads((source / CONFIG).read_text())
    assert before["tokenizer_class"] == "TokenizersBackend" and older(source)[0] is False
    found = written(source, tmp_path / "out")
    assert found["tokenizer_class"] == NEUTRAL
    assert found["model_input_names"] == [
        "input_ids",
        "attention_mask",
    ]  # 4.57 would add token types
    assert before.items() - {"tokenizer_class": "TokenizersBackend"}.items() <= found.items()
    assert same_bytes(source / FILE, tmp_path / "out" / FILE)
    texts = strings()
    one, other = (
        ids_of(AutoTokenizer.from_pretrained(f), texts) for f in (source, tmp_path / "out")
    )
    assert one == other == older_ids(tmp_path / "out", texts)
    (note,) = class_notes(source, tmp_path / "out")
    assert note == (
        f"{CONFIG} names PreTrainedTokenizerFast in the place of TokenizersBackend, so that "
        "transformers 4.57 reads it; 200 strings get the same ids."
    )
    assert older(tmp_path / "out")[0] is True


@pytest.mark.parametrize("named", [NEUTRAL, "LlamaTokenizerFast"])
def test_what_older_versions_read_goes_out_as_it_is(source, tmp_path, named):
    edit_json(source / CONFIG, tokenizer_class=named)
    written(source, tmp_path / "out")
    assert same_bytes(source / CONFIG, tmp_path / "out" / CONFIG)
    assert class_notes(source, tmp_path / "out") == []


def test_of_another_type_the_class_stays_out_of_it(source, tmp_path):
    """Without a class of its own the config names one: then only what it gives is said."""
    config = json.loads((source / CONFIG).read_text())
    del config["tokenizer_class"]
    (source / CONFIG).write_text(json.dumps(config))
    found = written(source, tmp_path / "out", "mistral", (0, 1, 2))
    assert found == config | {"model_input_names": ["input_ids", "attention_mask"]}
    model = json.loads((tmp_path / "out/config.json").read_text())
    assert (model["model_type"], model["tokenizer_class"]) == ("mistral", NEUTRAL)
    texts = strings()
    one, other = (
        ids_of(AutoTokenizer.from_pretrained(f), texts) for f in (source, tmp_path / "out")
    )
    assert one == other


def test_where_ids_would_differ_nothing_is_renamed(source, tmp_path, monkeypatch):
    monkeypatch.setattr("compressor.writing.tokenizer_class.older_ids", lambda folder, texts: [])
    assert written(source, tmp_path / "out")["tokenizer_class"] == "TokenizersBackend"
    assert same_bytes(source / CONFIG, tmp_path / "out" / CONFIG)
    answer, because = older(tmp_path / "out")
    assert answer is False and because.startswith("tokenizer: ")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        (NEUTRAL, True),
        ("LlamaTokenizer", True),
        ("GPT2TokenizerFast", True),
        ("TokenizersBackend", False),
        ("SentencePieceBackend", False),
        ("NoSuchTokenizer", False),
    ],
)
def test_classes_that_older_versions_find(name, known):
    assert known_to_older(name) is known


def test_strings_are_the_same_every_time_and_hold_the_special_ones():
    found = strings(["<s>", "</s>"])
    assert found == strings(["<s>", "</s>"]) and len(found) == STRINGS == 200
    assert {"<s>", "a</s>b", " <s> <s>", "", "\n", "\u3000"} <= {*found}
    assert len({*found}) > 180
