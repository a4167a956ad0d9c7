"""A head of its own under a config that ties it: every result is untied for all loaders, and says so."""

import json
import shutil

import pytest
from edits import edit_config
from jobs import compress, stage
from transformers import AutoModelForCausalLM

HEAD = "lm_head.weight"
JOBS = {
    "cut": ["--keep", 0.7, "--repair", "none"],
    "sparse": ["--method", "magnitude", "--sparsity", 0.5],
    "quantized": ["--quantize", "w4a16", "--quantize-group", 16, "--quantize-clip", "none"],
}


@pytest.fixture
def source(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "source")
    edit_config(folder, tie_word_embeddings=True, architectures=...)
    return folder


@pytest.mark.parametrize("name", JOBS)
def test_every_job(source, quick, tmp_path, capsys, name):
    assert compress(source, tmp_path / "out", *JOBS[name], *quick, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert any(HEAD in warning and "says tie_word" in warning for warning in result["warnings"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["architectures"] == [f"{config['model_type'].capitalize()}ForCausalLM"]
    before, after = map(AutoModelForCausalLM.from_pretrained, (source, tmp_path / "out"))
    assert after.lm_head.weight.equal(before.lm_head.weight.to(after.dtype))
    assert not after.lm_head.weight.equal(after.model.embed_tokens.weight)


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_eval(source, text_file, capsys, as_json):
    assert stage("eval", source, "--text", text_file, "--length", 32, *as_json) == 0
    assert f"hold a head ({HEAD}) of other values" in " ".join(capsys.readouterr().out.split())
