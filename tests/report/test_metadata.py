"""Heads of model cards: valid for the hub, with the source's licence, and without places on a disk."""

import json
import shutil

import pytest
import yaml
from huggingface_hub import ModelCardData, metadata_load
from jobs import compress

from compressor.config.hub_names import called
from compressor.report.metadata import copied
from compressor.writing.record import without_places

CARD = "---\nlicense: other\nlicense_name: ours\nlanguage: [en, de]\ntags: [chat]\n---\n# Ours\n"
KINDS = {
    "cut": (("--keep", 0.7, "--method", "random", "--repair", "ridge"), ["pruned"]),
    "zeros": (("--sparsity", 0.5, "--method", "magnitude"), ["pruned", "sparse"]),
    "packed": (
        ("--quantize", "w4a16", "--quantize-group", 16, "--quantize-clip", "none"),
        ["compressed-tensors", "w4a16"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_is_one_of_the_hub(llama, quick, text_file, tmp_path, kind):
    source, dest = tmp_path / "ours", tmp_path / "small"
    shutil.copytree(llama, source)
    (source / "README.md").write_text(CARD)
    (source / "other.bin").touch()  # stays behind, which a sentence says
    options, tags = KINDS[kind]
    texts = ("--evaluation", text_file, "--max-perplexity-ratio", "off")
    assert compress(source, dest, *options, *quick, *texts) == 0
    told = metadata_load(dest / "README.md")
    known = ModelCardData(**told)
    assert known.to_dict() == told
    assert (known.library_name, known.pipeline_tag) == ("transformers", "text-generation")
    assert (known.base_model, known.license, known.license_name) == ("ours", "other", "ours")
    assert known.language == ["en", "de"] and known.tags == tags
    for name in ("README.md", "compression.json"):
        text = (dest / name).read_text()
        assert str(tmp_path) not in text and str(text_file.parent) not in text
    record = json.loads((dest / "compression.json").read_text())
    assert any("what else is in ours: other.bin" in w for w in record["run"]["warnings"])
    assert record["evaluation"]["source"] == text_file.name


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("models/llama", "llama"),
        ("hub/models--an-owner--a-name/snapshots/0123abc", "an-owner/a-name"),
        ("hub/models--gpt2/snapshots/0123abc", "gpt2"),
        ("mine/snapshots/best", "best"),
    ],
)
def test_the_name_of_the_base(tmp_path, place, name):
    folder = tmp_path / place
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    assert called(folder) == called(tmp_path / "link") == name


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (CARD, {"license": "other", "license_name": "ours", "language": ["en", "de"]}),
        ("\ufeff---\r\nlicense: mit\r\n---", {"license": "mit"}),
        ("---\nlicense: [mit, 3]\nlanguage: ''\n---\n", {}),
        ("# No head\n---\nlicense: mit\n---\n", {}),
        ("---\n- license\n---\n", {}),
        ("---\nlicense: [\n---\n", {}),
        ("---\nlicense: mit\n" + "x" * (1 << 17), {}),
        ("---\nlicense: !!python/name:os.system\n---\n", {}),
    ],
)
def test_what_goes_along_of_a_sources_card(tmp_path, text, found):
    (tmp_path / "README.md").write_text(text)
    assert copied(tmp_path / "README.md") == found
    assert copied(tmp_path / "missing.md") == {}
    assert yaml.safe_load(yaml.safe_dump(found)) == found


def test_places_are_names_and_the_rest_is_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b/t.txt").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/t.txt").touch()
    record = {
        "text": str(tmp_path / "a b/t.txt"),
        "given": "sub/t.txt",
        "said": f"See '{tmp_path}/sub/t.txt' (or /else/where), and https://host/page; 3/4 and/or 5.",
        "data": "owner/data",
        "samples": [{"prompt": "/bin/true"}],
        "kept": [[1, 2], [0.5], [], ("/x/y",), None],
    }
    told = without_places(record)
    assert told == record | {
        "text": "t.txt",
        "given": "t.txt",
        "said": "See 't.txt' (or where), and https://host/page; 3/4 and/or 5.",
        "kept": [[1, 2], [0.5], [], ["y"], None],
    }
