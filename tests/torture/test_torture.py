"""`make torture` in its short form: some kills and some faults, and that what must not be is seen."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torture.record import totals
from torture.trees import bytes_lost, tree, whole

MAIN = Path(__file__).with_name("main.py")
SHORT = ["--only", "repair none", "--rounds", "1", "--jobs", "1", "--each", "1"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C++ compiler")
def test_a_handful_of_kills_and_of_faults(tmp_path):
    record = tmp_path / "record.jsonl"
    root, tests = MAIN.parents[2], MAIN.parents[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(root), str(tests)]),
        "PYTHONSAFEPATH": "1",
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, str(MAIN), *SHORT, "--record", str(record)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    kills, faults = map(json.loads, record.read_text().splitlines())
    assert sum(kills["kills"].values()) >= 1 and kills["finished"] == 1
    assert {*faults["kills"]} >= {"ENOSPC", "EIO", "EROFS", "RLIMIT_FSIZE"}
    for entry in (kills, faults):
        assert entry["failures"] == [] and entry["bytes_lost"] == 0
    assert "bytes lost: 0; failures: 0" in done.stdout
    assert [*tmp_path.iterdir()] == [record]


# -- what must not be ---------------------------------------------------------------------------------


@pytest.fixture
def reference(tmp_path):
    folder = tmp_path / "whole" / "out"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(f"the bytes of {name}")
    return folder


@pytest.fixture
def dest(tmp_path):
    (tmp_path / "job").mkdir()
    return tmp_path / "job" / "out"


def test_a_result_that_is_not_complete_is_seen(reference, dest):
    assert whole(dest, reference, None) is None
    shutil.copytree(reference, dest)
    assert whole(dest, reference, None) is None and bytes_lost(dest, reference) == 0
    (dest / "model.safetensors").write_text("the bytes")
    assert whole(dest, reference, None) == (
        "DEST is there and not complete: it differs in model.safetensors"
    )
    (dest / "model.safetensors").unlink()
    assert bytes_lost(dest, reference) == len("the bytes of model.safetensors")
    shutil.copytree(reference, dest, dirs_exist_ok=True)
    (dest / "more").touch()
    assert whole(dest, reference, None).endswith("differs in more")


def test_a_former_result_that_is_lost_is_seen(reference, dest):
    dest.mkdir()
    (dest / "compression.json").write_text("{}")
    former = tree(dest)
    assert whole(dest, reference, former) is None
    dest.rename(dest.with_name("out.old"))
    assert whole(dest, reference, former) is None
    shutil.rmtree(dest.with_name("out.old"))
    assert whole(dest, reference, former) == "the former result is lost"


def test_totals_are_of_all_runs_and_name_what_failed():
    entry = {
        "date": "2026-11-30", "commit": "a", "kind": "kills", "case": "one", "kills": {"SIGKILL": 2},
        "stages": {"score": 2}, "too_late": 1, "finished": 1, "bytes_lost": 0, "failures": [],
    }  # fmt: skip
    broken = entry | {"case": "two", "kills": {"SIGINT": 3}, "failures": ["it hangs"]}
    said = totals([entry, broken, entry | {"kind": "faults"}])
    assert said.startswith("kills: 5 in 2 cases, 2026-11-30 to 2026-11-30, commits a\n")
    assert "SIGINT 3, SIGKILL 2" in said and "failures: 1\n  FAILED two: it hangs\n" in said
    assert "\nfaults: 2 in 1 cases" in said
