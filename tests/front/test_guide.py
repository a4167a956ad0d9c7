"""The Python of docs/python.md runs as written, in one process and in order."""

import re
import shutil
from pathlib import Path

from compressor.scoring.methods import METHODS

ROOT = Path(__file__).parent.parent.parent


def test_the_guide_runs(examples_folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(examples_folder, tmp_path / "examples")
    (tmp_path / "build").mkdir()
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    parts = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(parts) == 4
    try:
        for part in parts:
            exec(compile(part, "docs/python.md", "exec"), {})
    finally:
        METHODS.pop("weight-norms", None)
    for name in ("from-memory", "cut", "repaired", "job"):
        assert (tmp_path / "build" / name / "model.safetensors").exists()
    printed = capsys.readouterr().out
    assert "'loads': True" in printed and "'attention'" in printed
