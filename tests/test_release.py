"""A version: what names it agrees, and what is released works where no compiler is."""

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
import yaml
from counting import NEEDS_EXTENSION

import compressor

ROOT = Path(__file__).parent.parent
CITED = yaml.safe_load((ROOT / "CITATION.cff").read_text())
# Of version 1.2.0 of the format.
REQUIRED = {"cff-version", "message", "title", "authors"}
KEYS = REQUIRED | {"abstract", "type", "version", "license", "references"}
OF_A_REFERENCE = {"type", "title", "authors"}
KEYS_OF_A_REFERENCE = OF_A_REFERENCE | {"identifiers", "url", "notes"}


def test_the_version_is_the_same_everywhere():
    heading = re.search(r"^## (\S+) \((.+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert heading[1] == CITED["version"] == compressor.__version__
    assert re.fullmatch(r"not released yet|\d{4}-\d\d-\d\d", heading[2])


def test_the_citation_has_the_keys_of_its_format():
    assert CITED["cff-version"] == "1.2.0" and CITED["type"] == "software"
    assert REQUIRED <= CITED.keys() <= KEYS
    for each in CITED["references"]:
        assert OF_A_REFERENCE <= each.keys() <= KEYS_OF_A_REFERENCE
        assert each["type"] == "article" and each["url"].startswith("https://arxiv.org/abs/")
        for identifier in each["identifiers"]:
            assert identifier.keys() == {"type", "value"}
            assert identifier["type"] in ("doi", "url", "swh", "other")
    for author in [a for each in (CITED, *CITED["references"]) for a in each["authors"]]:
        assert author.keys() in ({"name"}, {"given-names", "family-names"})


def test_the_three_papers_are_cited():
    """By the numbers that the page of methods gives them."""
    papers = re.findall(r"\*\*.+?\*\* \(arXiv (\S+)\)", (ROOT / "docs/methods.md").read_text())
    assert len(papers) == 3
    assert [each["url"].rpartition("/")[2] for each in CITED["references"]] == papers
    for each, paper in zip(CITED["references"], papers, strict=True):
        assert {"type": "other", "value": f"arXiv:{paper}"} in each["identifiers"]


def test_a_shell_is_told_how_to_complete_compress():
    code = "import sys; sys.argv[0] = 'compress'; from compressor.cli.compress import main; main()"
    asked = {
        "_COMPRESS_COMPLETE": "complete_bash",
        "COMP_WORDS": "compress --keep",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True
    )
    assert done.stdout.split() == ["--keep", "--keep-blocks", "--keep-hidden"], done.stderr
    assert done.returncode == 0


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """What `make release` writes, by the Python that runs the tests."""
    out = tmp_path_factory.mktemp("release") / "files"
    prefix = f"VENV={Path(sys.executable).parent.parent}"
    command = ["make", "-o", "install", "release", prefix, f"RELEASE={out}"]
    environment = os.environ | {"COMPRESSOR_NO_CUDA": "1", "MAX_JOBS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture
def nowhere(tmp_path) -> dict[str, str]:
    """Variables of a shell that finds no compiler."""
    (tmp_path / "programs").mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COMPRESSOR_"))}
    absent = {"PATH": str(tmp_path / "programs"), "CC": "/bin/false", "CXX": "/bin/false"}
    return kept | absent | {"OMP_NUM_THREADS": "1"}


def run(command: list, cwd: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed(wheel: Path, folder: Path, environment: dict[str, str]) -> Path:
    """An environment with this wheel, and what it depends on from where the tests have it."""
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "-q"]
    run([*pip, "--no-deps", "--no-index", wheel], folder, environment)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "base.pth").write_text(f"{Path(torch.__file__).parent.parent}\n")  # and no .pth of it
    return site


HAS = """
import compressor.kernels.colsum as it
print(it.__file__, "ext" in it.OP.available("cpu"))
"""


@pytest.mark.slow
@NEEDS_EXTENSION
@pytest.mark.parametrize("kind", ["for this Python", "for all", "built where no compiler is"])
def test_what_is_released_runs_without_a_compiler(kind, released, nowhere, tmp_path):
    (source,) = released.glob(f"compressor_llm-{compressor.__version__}.tar.gz")
    (pure,) = released.glob("*-py3-none-any.whl")
    (native,) = {*released.glob("*.whl")} - {pure}
    assert len([*released.iterdir()]) == 3
    assert f"-cp{sys.version_info.major}{sys.version_info.minor}-" in native.name
    wheel = {"for this Python": native, "for all": pure}.get(kind)
    if wheel is None:
        build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
        run([*build, "-w", tmp_path / "built", source], tmp_path, nowhere)
        (wheel,) = (tmp_path / "built").iterdir()
        assert wheel.name == pure.name
    site = installed(wheel, tmp_path / "environment", nowhere)
    programs = tmp_path / "environment/bin"
    there = run([programs / "python", "-c", HAS], tmp_path, nowhere)
    assert there == f"{site}/compressor/kernels/colsum.py {wheel == native}\n"
    asked = [
        "--keep",
        "0.85",
        "--fast",
        "--calibration",
        "stdlib",
        "--samples",
        "4",
        "--length",
        "64",
    ]
    run([programs / "compress", ROOT / "examples/tiny-llama", "out", *asked], tmp_path, nowhere)
    assert (tmp_path / "out/model.safetensors").stat().st_size < 11e6
    timed = ["-m", "compressor.kernels.bench", "colsum", "--shape", "64x96"]
    assert "2 passed" in run([programs / "python", *timed], tmp_path, nowhere)
