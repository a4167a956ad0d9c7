"""Every CUDA source compiles for the oldest and the newest architecture, and no kernel spills."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NVCC = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")

pytestmark = pytest.mark.skipif(not os.path.exists(NVCC), reason="needs nvcc")


@pytest.mark.parametrize("source", sorted(ROOT.glob("csrc/cuda/*.cu")), ids=lambda path: path.name)
def test_compiles_without_spills(source, tmp_path):
    command = [NVCC, "-std=c++17", "-O3", "-Xptxas=-v", "--threads=2", "-Werror=all-warnings"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in (80, 90)]
    command += ["-c", str(source), "-o", str(tmp_path / "object.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", done.stderr)
    spills = SPILLS.findall(done.stderr)
    assert {arch for _, arch in kernels} == {"80", "90"}
    assert len(spills) >= len(kernels)  # and those of functions that were not inlined
    assert {*spills} == {("0", "0")}, done.stderr
