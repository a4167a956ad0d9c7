"""`make look`: the pages that are made, in a real browser, as narrow as a phone and as wide as a desk,
light and dark. Their pictures lie in build/look, for people to look at.
"""

from pathlib import Path

import pytest
from jobs import compress, stage
from look.browser import SCHEMES, WIDTHS, look

OUT = Path(__file__).parents[2] / "build/look"
SITE = Path(__file__).parents[2] / "build/docs"
SMALL = ("--samples", 8, "--length", 32, "--no-verify")
JOBS = {
    "cut": ("--keep", 0.8, "--method", "hywia", "--repair", "ridge"),
    "widths": ("--keep", 0.8, "--allocate", "measured", "--layout", "per-layer"),
    "learned": ("--keep", 0.8, "--allocate", "besa", "--layout", "per-layer", "--repair", "none"),
    "trained": ("--keep", 0.8, "--repair", "none", "--recover", "distill:4"),
    "quantised": ("--keep", 0.8, "--quantize", "w4a16:16"),
}
SWEEP = """
source: {source}
calibration: {text}
samples: 8
length: 32
verify: false
runs:
  - {{method: [wanda-sp, magnitude], keep: [0.9, 0.8], repair: none}}
"""
DOCS = ("index", "first-hour", "results", "kernels", "scale")


@pytest.fixture(scope="module")
def out() -> Path:
    OUT.mkdir(parents=True, exist_ok=True)
    return OUT


@pytest.fixture
def page(request, llama, text_file, tmp_path) -> Path:
    """The page that this test looks at, made."""
    name = request.param
    if name == "sweep":
        file = tmp_path / "sweep.yaml"
        file.write_text(SWEEP.format(source=llama, text=text_file))
        assert stage("sweep", file, tmp_path / name) == 0
        return tmp_path / name / "sweep.html"
    text = ("--calibration", text_file)
    assert compress(llama, tmp_path / name, *JOBS[name], *SMALL, *text) == 0
    return tmp_path / name / "report.html"


def check(page: Path, width: int, scheme: str, out: Path) -> None:
    seen = look(page, width, scheme, out)
    assert not seen.said, seen.said
    assert seen.wide <= seen.shown, f"{seen.wide} pixels do not fit into {seen.shown}"
    assert seen.text > 200 and seen.picture.stat().st_size > 5000
    assert (seen.paper > 127) == (scheme == "light") and abs(seen.paper - seen.ink) > 100


@pytest.mark.parametrize("page", [*JOBS, "sweep"], indirect=True)
def test_a_page_of_results(page, out):
    for width in WIDTHS:
        for scheme in SCHEMES:
            check(page, width, scheme, out)


@pytest.mark.parametrize("name", DOCS)
def test_a_page_of_the_site(name, out):
    page = SITE / f"{name}.html"
    assert page.exists(), "make docs builds the site"
    for width in WIDTHS:
        seen = look(page, width, "light", out)
        assert seen.wide <= seen.shown and seen.text > 200


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ('<p style="width: 500px">wide</p>', "do not fit"),
        ("<script>nowhere()</script>", "not defined"),
        ("<p>black on white</p>", "paper"),
    ],
)
def test_what_is_wrong_is_seen(body, wrong, tmp_path, out):
    page = tmp_path / "wrong.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><body>{body}{'some words ' * 40}")
    with pytest.raises(AssertionError, match=wrong):
        check(page, 360, "dark", out)
