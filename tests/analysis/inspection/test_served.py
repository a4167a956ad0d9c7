"""What `inspect` answers of engines, against what they did with the same folders (`make serve`)."""

import json
from pathlib import Path

import pytest
from serving.folders import SWAPPED, plan_of, source_of

from compressor.analysis.inspection import inspect
from compressor.writing.cuts import write

FILE = Path(__file__).parents[3] / "bench/results/serve.json"
ROWS = [
    row
    for row in json.loads(FILE.read_text(encoding="utf-8"))["rows"]
    if "said" in row and row["name"] != SWAPPED
]
NAMES = sorted({row["name"] for row in ROWS})


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_engines_did(make_checkpoint, tmp_path, name):
    family, _, layout = name.partition("-")
    source = source_of(family, tmp_path / "source", make_checkpoint)
    write(source, plan_of(source, layout), tmp_path / name, layout)
    answers = {row["target"]: row["loads"] for row in inspect(tmp_path / name)["loads"]}
    for row in ROWS:
        if row["name"] == name and answers[row["engine"]] is not None:
            assert answers[row["engine"]] is row["loads"], row


def test_all_layouts_that_engines_know_were_run():
    loaded = {tuple(row["name"].split("-", 1)) for row in ROWS if row["loads"]}
    assert {layout for _, layout in loaded} == {"uniform", "nas", "per-layer"}
    assert all(row["within"] <= 1e-3 for row in ROWS if row["loads"])
