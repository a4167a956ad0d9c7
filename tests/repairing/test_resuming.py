"""A repair that was interrupted goes on with the next block, and ends with the same bytes."""

import signal
import subprocess
import sys

import pytest
from jobs import compress, same_files

from compressor.repairing.block import BlockRepair


@pytest.fixture
def quick(text_file):
    return ["--calibration", text_file, "--length", 32, "--samples", 6, "--no-verify"]


@pytest.mark.parametrize("repair", ["ridge", "ridge-local", "refine"])
def test_an_interrupted_repair_goes_on_with_the_next_block(
    any_family, quick, tmp_path, monkeypatch, repair
):
    asked = [*quick, "--keep-blocks", 0.7, "--repair", repair, "--layout", "padded"]
    assert compress(any_family, tmp_path / "whole", *asked) == 0
    run_block, seen = BlockRepair.run, []

    def stopping(block, *streams):
        seen.append(block.index)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return run_block(block, *streams)

    monkeypatch.setattr(BlockRepair, "run", stopping)
    dest = tmp_path / "part"
    assert compress(any_family, dest, *asked) == 130
    assert {f.name for f in (tmp_path / "part.work").rglob("repair/*/*")} == {
        "0.safetensors", "1.safetensors",
    }  # fmt: skip
    assert compress(any_family, dest, *asked, "--resume") == 0
    assert seen == [0, 1, 2, 2]
    assert same_files(tmp_path / "whole", dest) and not (tmp_path / "part.work").exists()


def test_of_several_results_the_finished_ones_keep_no_blocks(llama, quick, tmp_path, monkeypatch):
    run_block, seen = BlockRepair.run, []

    def stopping(block, *streams):
        seen.append(block.index)
        if len(seen) == 5:  # the second block of the second result
            raise KeyboardInterrupt
        return run_block(block, *streams)

    asked = [*quick, "--keep-blocks", 0.8, 0.6, "--repair", "ridge"]
    assert compress(llama, tmp_path / "whole", *asked) == 0
    monkeypatch.setattr(BlockRepair, "run", stopping)
    assert compress(llama, tmp_path / "part", *asked) == 130
    kept = [f.relative_to(tmp_path / "part.work") for f in tmp_path.rglob("repair/*/*")]
    assert [str(name) for name in kept] == ["repair/keep-blocks-0.6/0.safetensors"]
    assert compress(llama, tmp_path / "part", *asked, "--resume") == 0
    assert seen == [0, 1, 2, 0, 1, 1, 2]
    for folder in (tmp_path / "whole").iterdir():
        assert same_files(folder, tmp_path / "part" / folder.name)


KILLED = """
import os, signal, sys
from compressor.cli.compress import app
from compressor.cli.running import run
from compressor.repairing import streaming
keep = streaming.keep_block
def killed(folder, index, *given):
    if index == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    keep(folder, index, *given)
streaming.keep_block = killed
run(app, sys.argv[1:])
"""


def test_a_killed_repair_ends_with_identical_bytes(llama, quick, tmp_path):
    asked = [*map(str, (*quick, "--keep", 0.7))]
    assert compress(llama, tmp_path / "whole", *asked) == 0
    dest = tmp_path / "part"
    command = [sys.executable, "-c", KILLED, str(llama), str(dest), *asked]
    killed = subprocess.run(command, check=False)
    assert killed.returncode == -signal.SIGKILL and not dest.exists()
    assert compress(llama, dest, *asked, "--resume") == 0
    assert same_files(tmp_path / "whole", dest)
