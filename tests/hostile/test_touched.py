"""Whole commands on folders that were made to do harm: they change what is theirs, and run nothing.

The commands run in a process whose every opening, renaming and removal Python reports (`watched.py`).
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from edits import edit_config

from compressor.model.tensors import SINGLE

TESTS = Path(__file__).parent.parent
FONTS = "fc-list"  # by which the library that draws asks for fonts, once
CODE = "from pathlib import Path\nPath({file!r}).write_text('this ran')\nclass Evil: pass\n"


class Runs:
    """What makes a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def harmful(llama: Path, top: Path) -> None:
    """Folders with code, pickles that run some, and links that lead out; if any runs, it makes `ran`."""
    source, ran = top / "source", top / "ran"
    shutil.copytree(llama, source)
    names = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    edit_config(source, auto_map=names, custom_generate="evil", custom_pipelines={"x": "evil"})
    (source / "evil.py").write_text(CODE.format(file=str(ran)))
    for name in ("training_args.bin", "pytorch_model.bin", "optimizer.pt"):
        (source / name).write_bytes(pickle.dumps({"weights": Runs(ran)}))
    (top / "secret").write_text("of somebody else")
    for name in ("README.md", "notes.txt", "tokenizer.model"):
        (source / name).symlink_to(top / "secret")
    (source / "deep").mkdir()
    (source / "deep" / "up").symlink_to(top)
    shutil.copytree(source, top / "pickled", symlinks=True)
    (top / "pickled" / SINGLE).unlink()
    shutil.copytree(source, top / "coded", symlinks=True)
    tokenizer = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (top / "coded" / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def digests(top: Path) -> dict[str, str]:
    files = (Path(folder) / name for folder, _, names in os.walk(top) for name in names)
    return {str(file): sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def watched(llama, text_file, tmp_path_factory):
    """What was seen of the commands, and their folder; all in one process, which takes seconds."""
    top = tmp_path_factory.mktemp("touched")
    harmful(llama, top)
    for name in ("home", "temporary", "here"):
        (top / name).mkdir()
    before = digests(top)
    text = ["--calibration", str(text_file), "--length", "32", "--samples", "4"]
    cut = ["--keep", "0.8", "--no-verify", *text]
    commands = [
        ["compress", str(top / "source"), str(top / "out"), *cut],
        ["compress", str(top / "coded"), str(top / "out-coded"), *cut],
        ["inspect", str(top / "source")],
        ["inspect", str(top / "pickled")],
        ["inspect", str(top / "coded")],
        ["doctor", str(top / "source"), "--out", str(top / "out-source"), "--no-verify"],
        ["doctor", str(top / "pickled"), "--out", str(top / "out-pickled"), "--no-verify"],
        ["eval", str(top / "source"), "--text", str(text_file), "--length", "32"],
    ]
    environment = os.environ | {"HOME": str(top / "home"), "TMPDIR": str(top / "temporary")}
    environment |= {"MPLCONFIGDIR": str(top / "temporary"), "TRITON_INTERPRET": "1"}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch makes one below TMPDIR
    done = subprocess.run(
        [sys.executable, str(TESTS / "watched.py"), str(top)],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        env=environment,
        cwd=top / "here",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    return told | {"top": top, "before": before, "said": done.stderr}


def test_codes(watched):
    """A pickle that runs code is no state dict, and a tokenizer that is code is not run."""
    assert watched["codes"] == [0, 2, 0, 0, 0, 0, 2, 0], watched["said"]
    assert "is code of its own, which is not run" in watched["said"]
    assert "is no state dict" in watched["said"]


def test_nothing_else_is_changed(watched):
    top = watched["top"].resolve()
    theirs = (f"{top}/out", f"{top}/temporary")
    assert [path for path in watched["changed"] if not path.startswith(theirs)] == []
    assert any(path.startswith(f"{top}/out.work/") for path in watched["changed"])  # it was watched
    after = digests(watched["top"])
    new = {p for p in after if not p.startswith((f"{watched['top']}/out", *theirs))}
    assert {path: after[path] for path in new} == watched["before"]


def test_nothing_is_executed(watched):
    assert [what for what in watched["executed"] if FONTS not in what] == []
    assert not (watched["top"] / "ran").exists()


def test_nothing_of_somebody_else_goes_along(watched):
    """Neither what a link leads to nor a pickle."""
    out = watched["top"] / "out"
    assert (out / SINGLE).is_file()
    assert not [
        file for file in out.rglob("*") if file.suffix in (".bin", ".pt") or file.is_symlink()
    ]
    for file in watched["top"].glob("out*/**/*"):
        assert not file.is_file() or b"of somebody else" not in file.read_bytes()


def test_the_watch_sees(tmp_path):
    """What a command would do, were it to do harm."""
    from watched import Watch

    watch = Watch(tmp_path)
    watch.on = True
    watch("open", (str(tmp_path / "a"), "w", os.O_WRONLY | os.O_CREAT))
    watch("open", (str(tmp_path / "b"), "r", os.O_RDONLY))
    watch("os.rename", (str(tmp_path / "c"), str(tmp_path / "d"), -1, -1))
    place = os.open(tmp_path, os.O_RDONLY)
    watch("os.remove", ("e", place))
    os.close(place)
    watch("subprocess.Popen", ("/bin/sh", ["sh", "-c", "true"], None, None))
    watch("compile", (None, str(tmp_path / "evil.py")))
    here = tmp_path.resolve()
    assert sorted(watch.changed) == [str(here / name) for name in "acde"]
    assert len(watch.executed) == 2
