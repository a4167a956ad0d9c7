"""A pruning of single weights that is interrupted or killed goes on with the next block."""

import signal
import subprocess
import sys

from jobs import compress, same_files

from compressor.sparse import stream as stream_module


def test_an_interrupted_job_goes_on_with_the_next_block(
    llama, quick, tmp_path, monkeypatch, capsys
):
    arguments = [*quick, "--sparsity", 0.5, "--no-verify", "--update", "obs"]
    assert compress(llama, tmp_path / "whole", *arguments) == 0
    method, seen = stream_module.METHODS["besa"], []

    def stopping(block, recipe, targets):
        seen.append(block.index)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return method(block, recipe, targets)

    monkeypatch.setitem(stream_module.METHODS, "besa", stopping)
    assert compress(llama, tmp_path / "part", *arguments) == 130
    assert (tmp_path / "part.work/blocks/1.safetensors").exists()
    assert compress(llama, tmp_path / "part", *arguments[:-1], "none", "--resume") == 2
    assert "--update" in capsys.readouterr().err
    assert compress(llama, tmp_path / "part", *arguments, "--resume") == 0
    assert seen == [0, 1, 2, 2]
    assert same_files(tmp_path / "whole", tmp_path / "part")
    assert not (tmp_path / "part.work").exists()


KILLED = """
import os, signal, sys
from compressor.cli.stages import stages
from compressor.cli.running import run
from compressor.sparse import stream
method = stream.METHODS["besa"]
def killed(block, recipe, targets):
    if block.index == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return method(block, recipe, targets)
stream.METHODS["besa"] = killed
run(stages, ["sparsify", *sys.argv[1:]])
"""


def test_a_killed_job_goes_on_with_identical_bytes(llama, quick, tmp_path):
    arguments = [*quick, "--sparsity", 0.5, "--no-verify"]
    assert compress(llama, tmp_path / "whole", *arguments) == 0
    dest = tmp_path / "part"
    command = [sys.executable, "-c", KILLED, *map(str, (llama, dest, *arguments))]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not dest.exists()
    finished = {file.name for file in (tmp_path / "part.work/blocks").iterdir()}
    assert finished == {"0.safetensors", "1.safetensors"}
    assert compress(llama, dest, *arguments, "--resume") == 0
    assert same_files(tmp_path / "whole", dest)
