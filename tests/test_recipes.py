"""The recipes of examples/: the commands that the scripts make run, and the programs do."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.cli import compress, running, stages
from compressor.writing.record import read_record

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs/recipes.md").read_text()
RECIPES = [EXAMPLES / name for name in re.findall(r"^\| `(\S+)`", PAGE, re.M)]
APPS = {"compress": compress.app, "compressor": stages.stages}
STUB = """#!{python}
import json, sys
print(json.dumps([{name!r}, *sys.argv[1:]]), file=open({log!r}, "a"))
"""


def test_the_page_has_every_recipe():
    others = {"continue_text.py", "train_tiny_llama.py"}  # the README's and the bundled model's
    assert {*RECIPES} | {EXAMPLES / name for name in others} == {
        path for path in EXAMPLES.iterdir() if path.is_file() and path.suffix in (".py", ".sh")
    }
    for recipe in RECIPES:
        assert len(recipe.read_text().splitlines()) <= 40
        assert recipe.suffix == ".py" or os.access(recipe, os.X_OK)


@pytest.fixture
def here(examples_folder, tmp_path, monkeypatch) -> Path:
    """A folder as a clone's, where the recipes without arguments find the bundled model."""
    (tmp_path / "examples").symlink_to(examples_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(script: Path, folder: Path, *arguments: str, **environment: str) -> tuple[list, str]:
    """What a script has called, by programs that only note it, and what it printed."""
    programs, log = folder / "programs", folder / "called.jsonl"
    programs.mkdir()
    for name in ("compress", "compressor", "vllm", "llama-server"):
        (programs / name).write_text(STUB.format(python=sys.executable, name=name, log=str(log)))
        (programs / name).chmod(0o755)
    found = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"} | environment
    done = subprocess.run(
        [script, *arguments], cwd=folder, env=found, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in log.read_text().splitlines()], done.stdout


SMALL = ("--samples", "8", "--length", "64")
SCRIPTS = {
    "hywia_lora.sh": ("build/hywia-80", (*SMALL, "--recover", "lora:2")),
    "besa_4bit.sh": ("build/besa-4bit", (*SMALL, "--quantize", "w4a16:16")),
    "cut_and_serve.sh": ("build/served-80", (*SMALL, "--align", "16")),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script(name, here, request):
    """On a smaller model with less of everything; on the bundled one as it stands."""
    dest, less = SCRIPTS[name]
    source, small = "examples/tiny-llama", "as it is" not in request.node.name
    called, _ = commands(EXAMPLES / name, here, *([source, dest, *less] if small else []))
    for program, *arguments in called:
        assert running.run(APPS[program], arguments) == 0
    about = read_record(here / dest)
    if name == "hywia_lora.sh":
        assert about["plan"]["about"]["scores"]["method"] == "hywia"
        assert about["recovery"]["settings"]["steps"] == (2 if small else 100)
    if name == "besa_4bit.sh":
        assert about["sparsity"]["reached"] == pytest.approx(0.5, abs=0.01)
        assert about["quantization"]["scheme"] == "w4a16"
    if name == "cut_and_serve.sh":
        assert (here / f"{dest}.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("engine", "last"),
    [
        ("vllm", ["vllm", "serve", "b c"]),
        ("llama.cpp", ["llama-server", "-m", "b c.gguf", "--port", "8080"]),
        ("", ["compressor", "export", "b c", "b c.gguf", "--type", "q8_0"]),
    ],
)
def test_an_engine_that_is_asked_for_is_started(engine, last, tmp_path):
    called, printed = commands(EXAMPLES / "cut_and_serve.sh", tmp_path, "a", "b c", ENGINE=engine)
    assert called[0][:3] == ["compress", "a", "b c"] and called[-1] == last
    assert ("llama-server -m b c.gguf" in printed) == (not engine)


def run(name: str, monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_a_cut_model_drafts(here, monkeypatch, capsys):
    printed = run("cut_as_draft.py", monkeypatch, capsys)
    figures = [float(each) for each in re.findall(r": (\S+) tokens a step", printed)]
    assert len(figures) == 3 and all(1 <= each <= 49 for each in figures)
    assert (here / "build/draft/config.json").exists()


def test_a_module_in_memory(here, monkeypatch, capsys):
    printed = run("module_in_memory.py", monkeypatch, capsys)
    before, after = map(float, re.search(r"perplexity (\S+) -> (\S+)", printed).groups())
    assert 1 < before < 1e4 and 0.5 * before < after < 5 * before
    about = read_record(here / "build/module-80")["plan"]["about"]
    assert about["keep_blocks_reached"] == pytest.approx(0.8, abs=0.05)


def test_conversations_calibrate(here, monkeypatch, capsys):
    rows = [{"messages": [{"role": "user", "content": f"Say {n}."}]} for n in range(12)]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = run(
        "chat_calibration.py", monkeypatch, capsys, "examples/tiny-llama", "out", "rows.jsonl"
    )
    assert "out: perplexity" in printed
    texts = [json.loads(line)["text"] for line in (here / "out.jsonl").read_text().splitlines()]
    assert texts[3] == "<|im_start|>user\nSay 3.<|im_end|>\n"
    about = read_record(here / "out")["plan"]["about"]
    assert about["scores"]["calibration"]["source"] == "out.jsonl"
