"""The README and the pages: what they show runs as written, and what programs make is not old."""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest

from compressor.cli import compress, running, stages
from compressor.scoring.methods import METHODS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
APPS = {"compress": compress.app, "compressor": stages.stages}


def shown(page: Path) -> list[tuple[str, str]]:
    """Language and text of a page's blocks: these run, and what is indented is for other models."""
    return re.findall(r"```(bash|python|text)\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


LONG = {"sweep.md"}  # pages whose commands take half a minute
PAGES = [
    pytest.param(page, id=page.name, marks=[pytest.mark.slow] * (page.name in LONG))
    for page in (README, *sorted(DOCS.glob("*.md")))
    if shown(page)
]


@pytest.fixture
def clone(examples_folder, tmp_path, monkeypatch) -> Path:
    """A folder with what the commands read, the current one."""
    folder = tmp_path / "clone"
    shutil.copytree(examples_folder, folder / "examples")
    (folder / "build").mkdir()
    monkeypatch.chdir(folder)
    yield folder
    METHODS.pop("weight-norms", None)


@pytest.mark.parametrize("page", PAGES)
def test_what_is_shown_runs(page, clone, request, capsys):
    for language, text in shown(page):
        if language == "python":
            exec(compile(text, page.name, "exec"), {})
        for line in text.splitlines() if language == "bash" else ():
            program, *arguments = shlex.split(line)
            if program == "pip":  # `tests/test_installing.py` does that
                continue
            assert running.run(APPS[program], arguments) == 0, f"{line}\n{capsys.readouterr().err}"
        if language == "text" and request.node.callspec.params["examples_folder"] == "as it is":
            # What the command before prints, but for times and measurements.
            printed = capsys.readouterr().out
            for line in text.splitlines():
                if line.startswith((" result", " small", "stays", "type", "      vllm")):
                    assert line.partition(" MB")[0] in printed


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 115


def made(name: str):
    """A program of docs/, as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["make_results", "make_troubleshooting"])
def test_pages_are_what_programs_make(name):
    program = made(name)
    assert program.page() == program.PAGE.read_text(), f"run python docs/{name}.py"


def test_the_picture_is_of_the_rows(tmp_path):
    program = made("make_picture")
    program.draw(tmp_path / "real.svg")
    assert (tmp_path / "real.svg").read_text() == program.PICTURE.read_text()


def test_the_figures_of_the_readme_are_those_of_the_results():
    """Its first number, and its row of the table."""
    rows = [
        row
        for row in made("make_results").read_rows()
        if (row["model"], row["run"], row["draw"]) == ("SmolLM2-135M", "default", 0)
    ]
    times = {round(row["asked"], 1): row["times_dense"]["4"] for row in rows}
    text = README.read_text()
    assert f"has {times[0.8]:.2f} times the perplexity" in text
    cells = " | ".join(f"**{times[share]:.3f}**" for share in (0.9, 0.8, 0.7))
    assert f"| **compress** | {cells} |" in text


def test_links_lead_somewhere():
    """Those of the README, which is no page of the site, whose links `make docs` follows."""
    for target in re.findall(r"\]\(([^)#]+)", README.read_text()):
        assert (ROOT / target).exists(), target


def test_every_method_and_mode_is_in_the_table():
    lines = (DOCS / "methods.md").read_text().splitlines()
    for method in METHODS.values():
        row = next(line for line in lines if line.startswith(f"| `{method.name}`"))
        assert all(f"`{mode}`" in row for mode in method.modes)


def test_the_site_builds(tmp_path):
    """Every page is in the navigation, every link between them leads to one, every name is known."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
    build(config)
    assert (tmp_path / "site/api.html").stat().st_size > 10_000
