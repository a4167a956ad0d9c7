"""`bench/served.py` with an interpreter that only says what it was asked for."""

import json
import os
import sys
from pathlib import Path

import pytest
import served
from edits import edit_config
from serving.models import source_of

ENGINE = """#!{python}
import json, pathlib, sys
*_, engine, model = sys.argv
calls = pathlib.Path({calls!r})
calls.write_text(calls.read_text() + engine + " " + pathlib.Path(model).name + "\\n")
speed = (10 if engine == "vllm" else 100) * (2 if "small" in model else 1)
print("loading")
print(json.dumps({{"first_token_s": 0.5, "tokens_per_s": speed, "peak_rss_bytes": 3e9}}))
"""


@pytest.fixture
def engines(tmp_path) -> Path:
    calls, file = tmp_path / "calls", tmp_path / "python"
    calls.write_text("")
    file.write_text(ENGINE.format(python=sys.executable, calls=str(calls)))
    os.chmod(file, 0o755)
    return file


def test_source_and_cut_take_turns(make_checkpoint, engines, tmp_path, capsys, monkeypatch):
    source = source_of("llama", tmp_path / "large", make_checkpoint).path
    cut = source_of("llama", tmp_path / "small", make_checkpoint).path
    served.main(source, cut, engines, tmp_path)
    told = json.loads((tmp_path / "served-small.json").read_text())
    speeds = [(row["engine"], row["model"], row["tokens_per_s"]) for row in told["rows"]]
    assert speeds == [
        ("vllm", "source", 10),
        ("vllm", "cut", 20),
        ("llama.cpp", "source", 100),
        ("llama.cpp", "cut", 200),
    ]
    turns = ["vllm large", "vllm small"] * 3 + ["llama.cpp large.gguf", "llama.cpp small.gguf"] * 3
    assert (tmp_path / "calls").read_text().splitlines() == turns
    assert "2.00" in capsys.readouterr().out
    monkeypatch.setattr(served, "ROUNDS", 1)
    engines.write_text(f"#!{sys.executable}\nraise SystemExit('no such kernel')\n")
    with pytest.raises(SystemExit, match=r"vllm does not run .*large: no such kernel"):
        served.main(source, cut, engines, tmp_path)


def test_a_model_that_llama_cpp_has_not_is_refused_at_once(make_checkpoint, engines, tmp_path):
    source = source_of("llama", tmp_path / "large", make_checkpoint).path
    edit_config(source, hidden_act="gelu")
    with pytest.raises(Exception, match="silu, not gelu"):
        served.main(source, source, engines, tmp_path)
    assert (tmp_path / "calls").read_text() == ""
