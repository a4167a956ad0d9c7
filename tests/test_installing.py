"""Installed with and without the extension, and imported from a clone beside what is installed."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from counting import NEEDS_EXTENSION

ROOT = Path(__file__).parent.parent
FILES = ["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"]
COMPILED = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
WARNING = "WARNING: compressor is installed without its C++ extension: "
# An editable installation of the package under test would answer for what the folders do not have.
ONLY_THE_PATH = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in repr(finder)]
"""
USE = """
import torch
from compressor.kernels.colsum import OP, colsum
assert colsum(torch.arange(12.0).view(3, 4)).tolist() == [12, 15, 18, 21]
print(*OP.available("cpu"))
"""


def copied(folder: Path) -> Path:
    """The sources, as a fresh clone has them."""
    folder.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("compressor", "kernels", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def build(tree: Path, what: str = "wheel", **environment: str) -> subprocess.CompletedProcess:
    """As pip has setuptools build it."""
    code = f"from setuptools import build_meta; build_meta.build_{what}('dist')"
    kept = {k: v for k, v in os.environ.items() if k not in ("CXX", "COMPRESSOR_NO_EXTENSION")}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=tree, env=kept | environment, capture_output=True, text=True, timeout=300
    )


def python(*arguments, path: Path, cwd: Path, without=()) -> subprocess.CompletedProcess:
    """A fresh Python that finds `path` before what is installed."""
    environment = {k: v for k, v in os.environ.items() if k not in without}
    environment["PYTHONPATH"] = str(path)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return copied(tmp_path_factory.mktemp("sources") / "clone")


@pytest.fixture(scope="module")
def without(tree, tmp_path_factory) -> Path:
    """What is installed where there is no compiler."""
    done = build(tree, CXX="/nonexistent/c++")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(WARNING) == 1
    assert f"{WARNING}the C++ compiler '/nonexistent/c++' is not there. " in done.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    site = tmp_path_factory.mktemp("without")
    zipfile.ZipFile(wheel).extractall(site)
    assert not list(site.rglob("*.so"))
    return site


def test_the_references_run_where_nothing_compiles(without, tmp_path):
    done = python("-c", ONLY_THE_PATH + USE, path=without, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ref" in done.stdout and "ext" not in done.stdout
    assert done.stderr.count("PyTorch references run on cpu: the extension is not built") == 1


def test_a_whole_job_runs_where_nothing_compiles(without, tmp_path, llama, text_file):
    run = "from compressor.cli.compress import main; main()"
    arguments = [llama, tmp_path / "out", "--keep", "0.7", "--calibration", text_file]
    arguments += ["--samples", 4, "--length", 32, "--no-verify"]
    done = python("-c", ONLY_THE_PATH + run, *arguments, path=without, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/model.safetensors").exists()


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "false"}, "the C++ compiler 'false' fails on a few lines (without a word)"),
        ({"COMPRESSOR_NO_EXTENSION": "1"}, None),
    ],
    ids=["a compiler that fails", "not wanted"],
)
def test_a_compiler_that_fails_is_named_and_what_is_not_wanted_is_not_tried(
    tmp_path, environment, reason
):
    tree = copied(tmp_path / "clone")
    done = build(tree, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(WARNING) == (reason is not None)
    assert reason is None or f"{WARNING}{reason}. " in done.stderr
    assert [path.name.split("-", 2)[2] for path in (tree / "dist").iterdir()] == [
        "py3-none-any.whl"
    ]


@NEEDS_EXTENSION
def test_an_error_in_the_sources_is_no_reason_to_go_without(tmp_path):
    tree = copied(tmp_path / "clone")
    (tree / "csrc/bindings.cpp").write_text("#error no binding\n")
    done = build(tree, COMPRESSOR_NO_CUDA="1", MAX_JOBS="1")
    assert done.returncode != 0
    assert "error: #error no binding" in done.stdout + done.stderr
    assert "The extension could not be compiled" in done.stderr
    assert WARNING not in done.stderr
    assert not list((tree / "dist").glob("*.whl"))


def test_an_editable_installation_without_it_forgets_what_was_compiled(tmp_path):
    tree = copied(tmp_path / "clone")
    built = tree / "compressor" / COMPILED
    built.write_bytes(b"of an earlier installation")
    done = build(tree, "editable", COMPRESSOR_NO_EXTENSION="1")
    assert done.returncode == 0, done.stderr
    assert not built.exists()


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=NEEDS_EXTENSION), False])
def test_python_in_a_clone_finds_the_kernels_beside_it(tree, without, tmp_path, compiled):
    """And what was compiled where the package is installed, or the references run."""
    site = shutil.copytree(without, tmp_path / "site")
    if compiled:
        from compressor import _C

        shutil.copy(_C.__file__, site / "compressor" / COMPILED)
    code = ONLY_THE_PATH + USE + "import compressor as c; print(c.__file__, c.kernels.__file__)"
    done = python("-c", code, path=site, cwd=tree, without=["PYTHONSAFEPATH"])
    assert done.returncode == 0, done.stderr
    backends, files = done.stdout.splitlines()
    assert ("ext" in backends) == compiled
    assert files == f"{tree}/compressor/__init__.py {tree}/kernels/__init__.py"
    assert done.stderr.count("the extension is not built") == (not compiled)


def test_an_installed_package_looks_for_nothing_elsewhere(without, tmp_path):
    """Beside it may lie a package `kernels` of somebody else's."""
    site = shutil.copytree(without, tmp_path / "site")
    (site / "kernels").mkdir()
    (site / "kernels/__init__.py").write_text("raise RuntimeError('not ours')\n")
    code = ONLY_THE_PATH + "import compressor.kernels as k; print(k.__file__)"
    done = python("-c", code, path=site, cwd=tmp_path)
    assert done.stdout.strip() == f"{site}/compressor/kernels/__init__.py", done.stderr
