"""What goes into a result beside its weights, and what is named as left behind."""

import json
import shutil

import pytest
import torch
from jobs import compress, same_bytes
from safetensors.torch import save_file
from transformers import AutoTokenizer

from compressor.model.checkpoint import Checkpoint
from compressor.writing import side_files
from compressor.writing.side_files import copy_side_files, left_behind

TEMPLATE = "additional_chat_templates/tool_use.jinja"


@pytest.fixture
def source(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "source")


def put(file, content: bytes = b"something"):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def copied(source, tmp_path) -> set[str]:
    """What was copied, by its path in the folder."""
    out = tmp_path / "out"
    out.mkdir()
    copy_side_files(Checkpoint(source), out)
    found = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert all(same_bytes(out / name, source / name) for name in found)
    return found


def test_small_files_go_along_and_weights_do_not(source, tmp_path):
    for name in ("LICENSE", "chat_template.jinja", ".gitattributes", "merges.txt"):
        put(source / name)
    others = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf", "optimizer.pt")
    others += ("model.safetensors.index.fp16.json", "consolidated.safetensors", "README.md")
    for name in others:
        put(source / name)
    found = copied(source, tmp_path)
    assert {"LICENSE", "chat_template.jinja", ".gitattributes", "merges.txt"} <= found
    assert {"tokenizer.json", "generation_config.json"} <= found
    assert not found & {*others, "config.json", "model.safetensors"}
    (sentence,) = left_behind(Checkpoint(source))
    assert "consolidated.safetensors (weights), model.gguf (weights)" in sentence
    assert "model.safetensors (" not in sentence and "README" not in sentence


def test_a_plain_folder_leaves_nothing_behind(llama):
    assert left_behind(Checkpoint(llama)) == []


def test_side_data_in_subfolders_goes_along(source, tmp_path):
    names = {TEMPLATE, "additional_chat_templates/rag.jinja", "prompts/en/system.txt", "a/b/c.json"}
    for name in names:
        put(source / name)
    assert names <= copied(source, tmp_path)
    assert left_behind(Checkpoint(source)) == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("onnx/model.onnx", "onnx/ (weights)"),
        ("original/consolidated.00.pth", "original/ (weights)"),
        ("original/params.json", "original/ (another model)"),
        ("checkpoint-500/trainer_state.json", "checkpoint-500/ (another model)"),
        ("base/deep/down/model.safetensors", "base/ (weights)"),
        ("runs/Nov28/events.out.tfevents.1.host.0", "runs/ (logs)"),
        (".git/HEAD", ".git/ (hidden)"),
        (".cache/huggingface/x.json", ".cache/ (hidden)"),
        ("data/large.txt", "data/ (large)"),
    ],
)
def test_subfolders_that_stay_are_named(source, tmp_path, monkeypatch, name, why):
    monkeypatch.setattr(side_files, "MOST_BYTES", 1 << 15)
    put(source / name, bytes((1 << 15) + 1 if "large" in name else 3))
    put(source / name.partition("/")[0] / "note.txt")
    assert not [name for name in copied(source, tmp_path) if "/" in name]
    (sentence,) = left_behind(Checkpoint(source))
    assert why in sentence


def test_a_large_file_stays(source, tmp_path, monkeypatch):
    monkeypatch.setattr(side_files, "MOST_BYTES", 1 << 15)
    put(source / "train.jsonl", bytes((1 << 15) + 1))
    assert "train.jsonl" not in copied(source, tmp_path)
    assert "train.jsonl (large)" in left_behind(Checkpoint(source))[0]


def test_links_out_of_the_folder_are_not_followed(source, tmp_path):
    secret = put(tmp_path / "elsewhere" / "secret.txt")
    (source / "whole").symlink_to(secret.parent)
    put(source / "some" / "own.txt")
    (source / "some" / "link.txt").symlink_to(secret)
    put(source / "deep" / "own.txt")
    (source / "deep" / "folder").symlink_to(secret.parent)
    put(source / "inner" / "own.txt")
    (source / "inner" / "link.txt").symlink_to(source / "tokenizer.json")
    found = {name for name in copied(source, tmp_path) if "/" in name}
    assert found == {"inner/own.txt", "inner/link.txt"}
    (sentence,) = left_behind(Checkpoint(source))
    for named in ("whole/ (a link)", "some/ (links out of it)", "deep/ (links out of it)"):
        assert named in sentence


def test_the_links_of_the_hubs_cache_are(llama, tmp_path):
    """It keeps the files of a snapshot under their hashes, and links to them."""
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots" / "0123"
    shutil.copytree(llama, snapshot)
    put(snapshot / TEMPLATE, b"{{ messages }}")
    (cache / "blobs").mkdir()
    for i, file in enumerate([p for p in snapshot.rglob("*") if p.is_file()]):
        blob = cache / "blobs" / str(i)
        file.rename(blob)
        file.symlink_to(blob)
    assert TEMPLATE in copied(snapshot, tmp_path)
    assert left_behind(Checkpoint(snapshot)) == []


CUT = ["--keep", 0.7, "--repair", "none", "--align", 16]
QUANTIZED = ["--quantize", "w4a16", "--quantize-group", 16, "--quantize-clip", "none"]
SPARSE = ["--method", "magnitude", "--sparsity", 0.5]


@pytest.mark.parametrize(
    "options",
    [CUT, SPARSE, QUANTIZED, [*CUT, *QUANTIZED], [*SPARSE, *QUANTIZED]],
    ids=["cut", "sparse", "quantized", "cut and quantized", "sparse and quantized"],
)
def test_every_job_has_them_and_says_what_stays(source, tmp_path, quick, capsys, options):
    put(source / TEMPLATE, b"TOOLS {{ messages[0]['content'] }}")
    put(source / "chat_template.jinja", b"{{ messages[0]['content'] }}")
    save_file({"x": torch.zeros(2)}, put(source / "other" / "model.safetensors"))
    assert compress(source, tmp_path / "out", *options, "--json", *quick) == 0
    result = json.loads(capsys.readouterr().out)
    assert any("other/ (weights)" in warning for warning in result["warnings"])
    assert same_bytes(tmp_path / "out" / TEMPLATE, source / TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False, chat_template="tool_use"
    )
    assert said == "TOOLS x"
