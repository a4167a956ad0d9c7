"""report.html: all that a record has is in it, and nothing from elsewhere."""

import json
import re
from html.parser import HTMLParser

import pytest
from jobs import compress, stage

from compressor.report.charts import bars, lines
from compressor.report.page import PAGE, write_page

VOID = {"meta", "img", "br", "line", "rect", "polyline"}
TEXT = ("--calibration", "stdlib", "--samples", "8", "--length", "32")


class Checked(HTMLParser):
    """Every tag is closed, and in order."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(text: str) -> str:
    """What a page says, in one line."""
    parser = Checked()
    parser.feed(text)
    assert parser.open == []
    return " ".join(" ".join(parser.text).split())


@pytest.fixture(scope="module")
def cut(llama, tmp_path_factory):
    """A result with scores, a repair, a training and a comparison of allocations."""
    out = tmp_path_factory.mktemp("page") / "out"
    job = ("--keep-blocks", "0.8", "--allocate", "exact", "--recover", "lora:2", *TEXT)
    assert compress(llama, out, *job, "--max-perplexity-ratio", "off") == 0
    return out


def test_what_a_job_found_is_told(cut):
    record = json.loads((cut / "compression.json").read_text())
    said = read((cut / PAGE).read_text())
    for title in ("What stays", "Scores and the cut", "Allocations", "Repair", "What loads it"):
        assert title in said
    assert f"{record['parameters_after']:,}" in said and record["run"]["command"] in said
    assert all(f"{seconds:.1f}" in said for seconds in record["run"]["seconds"].values())
    assert f"{record['kl']:.4f}" in said and "2 steps of lora" in said
    assert "transformers" in said and "vLLM" in said


def test_nothing_is_fetched_or_run(cut):
    text = (cut / PAGE).read_text()
    assert not re.search(r"https?://|<script|url\(|@import|<link", text)


def test_a_record_of_zeros(llama, tmp_path):
    out = tmp_path / "out"
    job = ("--sparsity", "0.5", "--method", "wanda", "--max-perplexity-ratio", "off", *TEXT)
    assert stage("sparsify", llama, out, *job) == 0
    assert "Zeros, block by block" in read((out / PAGE).read_text())


def test_names_are_escaped(cut):
    record = json.loads((cut / "compression.json").read_text())
    record["source"]["name"] = "<b>&"
    record["run"]["warnings"] = ["a < b"]
    write_page(cut, record, [])
    text = (cut / PAGE).read_text()
    assert "<b>" not in text and "a &lt; b" in text
    read(text)


def test_bars_are_as_high_as_their_values():
    drawn = bars({"half": [1.0, 0.5, None]}, "percent", 1)
    tall, low = (float(h) for h in re.findall(r'rect [^>]*height="([\d.]+)"', drawn))
    assert tall == pytest.approx(2 * low, abs=0.1)
    assert "block 1, half: 0.5 percent" in drawn


def test_charts_of_zeros_and_of_one_point():
    read(bars({"none": [0.0, 0.0]}, "x"))
    read(lines({"one": [1.0]}, "x", ["1"]))
