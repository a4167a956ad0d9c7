"""Every CUDA source compiles for every architecture, to no more machine code than
tests/machine_code.py allows.

For the architectures between the oldest and the newest that the extension is built for, and after
them, one source of the five is tried; the others are slow.
"""

import os
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest
from machine_code import ARCHS, complaints

from compressor.kernels.sass import Figures, demangled, figures_of

CSRC = Path(__file__).parent.parent.parent / "csrc"
SOURCES = sorted(path.name for path in CSRC.glob("cuda/*.cu"))
NVCC = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
BUILT_FOR = (80, 90)  # what setup.py compiles for
QUICK = "besa_mask.cu"

pytestmark = pytest.mark.skipif(not os.path.exists(NVCC), reason="needs nvcc")


def compiled(source: Path, arch: int, folder: Path) -> dict[str, Figures]:
    """Kernel -> figures."""
    cubin = folder / "kernels.cubin"
    command = [NVCC, "-std=c++17", "-O3", "-Werror=all-warnings", "-cubin", f"-arch=sm_{arch}"]
    done = subprocess.run([*command, "-o", cubin, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = figures_of(cubin)
    return dict(zip(demangled([f.kernel for f in found]), found, strict=True))


def cases() -> list:
    return [
        pytest.param(
            source,
            arch,
            marks=[] if arch in BUILT_FOR or source == QUICK else pytest.mark.slow,
            id=f"{source}-{arch}",
        )
        for source, arch in product(SOURCES, ARCHS)
    ]


@pytest.mark.parametrize(("source", "arch"), cases())
def test_machine_code(source, arch, tmp_path):
    kernels = compiled(CSRC / "cuda" / source, arch, tmp_path)
    assert kernels
    assert [c for name, figures in kernels.items() for c in complaints(name, figures)] == []


def test_a_store_that_is_split_is_seen(tmp_path):
    """An assignment of eight computed elements, which the compiler turns into eight stores."""
    folder = shutil.copytree(CSRC, tmp_path / "csrc") / "cuda"
    source = folder / "besa_mask.cu"
    right = source.read_text()
    wrong = right.replace("write_eight(out + c", "store_eight(out + c")
    assert wrong != right
    source.write_text(wrong)
    name = "mask_kernel<unsigned short, true>"
    said = complaints(name, compiled(source, 90, tmp_path)[name])
    assert any("narrower than 16" in sentence for sentence in said), said
