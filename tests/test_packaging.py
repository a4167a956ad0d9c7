"""What is installed: one top-level name, and folders that hide nobody else's."""

import ast
import importlib.machinery
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from counting import NEEDS_EXTENSION

ROOT = Path(__file__).parent.parent
SCHEMAS = ("plan", "scores", "scores-header")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_wheel_installs_one_name(wheel):
    names = {name.split("/")[0] for name in wheel.namelist()}
    assert {n for n in names if not n.endswith(".dist-info")} == {"compressor"}


def test_wheel_holds_every_module_and_data_file(wheel):
    expected = {p.relative_to(ROOT).as_posix() for p in (ROOT / "compressor").rglob("*.py")}
    kernels = [p.relative_to(ROOT).as_posix() for p in (ROOT / "kernels").rglob("*.py")]
    expected |= {f"compressor/{name}" for name in kernels}
    expected |= {"compressor/py.typed", "compressor/held_out_modules.txt"}
    expected |= {"compressor/report/page.css"}
    expected |= {f"compressor/schemas/{name}.schema.json" for name in SCHEMAS}
    assert expected <= set(wheel.namelist())


@NEEDS_EXTENSION
def test_wheel_holds_the_built_extension_and_no_sources(wheel):
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    assert f"compressor/_C{suffix}" in wheel.namelist()
    assert not [n for n in wheel.namelist() if n.endswith((".cpp", ".cu", ".h", ".o"))]


@NEEDS_EXTENSION
def test_every_native_source_is_compiled(wheel):
    """The list that the wheel was just built by; CUDA's only where there is a compiler for it."""
    build = ROOT / f"build/ninja-{sys.implementation.cache_tag}/build.ninja"
    compiled = [line for line in build.read_text().splitlines() if ": compile " in line]
    sources = {*(ROOT / "csrc").rglob("*.cpp")}
    if "bin/nvcc" in build.read_text():
        sources |= {*(ROOT / "csrc").rglob("*.cu")}
    assert len(compiled) == len(sources)
    for source in sources:
        path = source.relative_to(ROOT).as_posix()
        assert any(line.endswith(path) for line in compiled), path


def test_source_distribution_holds_what_the_build_needs(tmp_path):
    names = ["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt"]
    for name in names:
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("compressor", "kernels", "csrc"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(next((tmp_path / "dist").iterdir())) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    needed = [p for folder in ("kernels", "csrc") for p in (ROOT / folder).rglob("*.*")]
    assert {p.relative_to(ROOT).as_posix() for p in needed if p.suffix != ".pyc"} <= found
    assert {*names} <= found
    assert {f"compressor/schemas/{name}.schema.json" for name in SCHEMAS} <= found


def test_kernels_package_is_a_docstring():
    body = ast.parse((ROOT / "kernels/__init__.py").read_text()).body
    assert [type(node) for node in body] == [ast.Expr]
    assert not list((ROOT / "compressor").glob("kernels*"))


@pytest.mark.parametrize("folder", ["compressor", "kernels"])
def test_imports_are_absolute(folder):
    # They import other files of the folder that they are shipped in.
    families = ROOT / "compressor/model/families"
    beside = {families / "modeling_alibi.py", families / "modeling_nas.py"}
    for path in {*(ROOT / folder).rglob("*.py")} - beside:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path


def test_kernels_know_tensors_only():
    for path in (ROOT / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not node.module.startswith("compressor.") or "kernels" in node.module, path


def test_importing_the_package_is_light():
    code = "import compressor, compressor.cli.stages, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
