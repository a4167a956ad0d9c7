"""Installs the package where it lies, with the extension for a GPU, unless that is done already.

    python bench/gpu_install.py [--target FOLDER]

Nothing is downloaded: torch, setuptools, pybind11 and ninja are there. Sources that changed since are
built anew. Where nvcc fails, the C++ extension alone is installed, and then none, so that the parts
which do not need it are measured; the exit code is 1 all the same. With `--target` it goes into a folder
of its own, without CUDA, to see whether that works.
"""

import argparse
import hashlib
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from gpu_rows import put

ROOT = Path(__file__).parent.parent
MARK = ROOT / "build/.gpu-installed"
PIP = ("-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps")
LESS = ({}, {"COMPRESSOR_NO_CUDA": "1"}, {"COMPRESSOR_NO_EXTENSION": "1"})
HAS_CUDA = "from compressor import _C; assert _C.with_cuda, 'built without CUDA: is there an nvcc?'"
WANTED = (
    *("accelerate", "hypothesis", "ninja", "numpy", "peft", "psutil", "pybind11", "pytest"),
    *("pytest-benchmark", "pytest-xdist", "pyyaml", "rich", "safetensors", "setuptools"),
    *("tokenizers", "torch", "transformers", "triton", "typer"),
)


def main(target: str | None = None) -> int:
    """The exit code."""
    packages()
    if target:
        return python(*PIP, "--target", target, str(ROOT), **LESS[1])
    known = f"{sys.executable} {sources()}"
    if MARK.exists() and MARK.read_text() == known and not python("-c", HAS_CUDA):
        put("installed before", 0)
        return 0
    for number, less in enumerate(LESS):
        if python(*PIP, "-e", str(ROOT), **less):
            print(f"could not be installed with {less or 'CUDA'}")
            continue
        if number == 0 and python("-c", HAS_CUDA):
            return 1
        if number == 0:
            MARK.parent.mkdir(exist_ok=True)
            MARK.write_text(known)
        return int(number > 0)
    return 1


def packages() -> None:
    """A case for every package that the parts import."""
    for name in WANTED:
        try:
            put(name, 0, version=version(name))
        except PackageNotFoundError:
            put(name, 0, "failed", why="not installed")


def sources() -> str:
    """One digest of all that the extension is built from."""
    files = sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    whole = hashlib.sha256(os.environ.get("COMPRESSOR_CUDA_ARCHS", "").encode())
    for file in (*files, ROOT / "setup.py", ROOT / "pyproject.toml"):
        whole.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return whole.hexdigest()


def python(*arguments: str, **environment: str) -> int:
    return subprocess.run([sys.executable, *arguments], env=os.environ | environment).returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--target")
    sys.exit(main(parser.parse_args().target))
