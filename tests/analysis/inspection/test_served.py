"""What `inspect` answers of engines, against what they did with the same folders (`make serve`)."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from serving.folders import (
    GPU_ALONE,
    LAYOUTS,
    NARROW,
    QUANTISED,
    STACKED,
    SWAPPED,
    WITHIN,
    cut,
)
from serving.models import source_of

from compressor.analysis.inspection import inspect

FILE = Path(__file__).parents[3] / "bench/results/serve.json"
ROWS = [
    row
    for row in json.loads(FILE.read_text(encoding="utf-8"))["rows"]
    if row.get("said") is not None and row["name"] != SWAPPED
]
NAMES = sorted({row["name"] for row in ROWS})


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_engines_did(make_checkpoint, tmp_path, name):
    family, _, kind = name.partition("-")
    build = partial(make_checkpoint, dtype=QUANTISED.get(kind, (torch.float32,))[0])
    cut(source_of(family, tmp_path / "source", build), kind, tmp_path / name)
    answers = {row["target"]: row["loads"] for row in inspect(tmp_path / name)["loads"]}
    for row in ROWS:
        if row["name"] == name and answers.get(row["engine"]) is not None:
            assert answers[row["engine"]] is row["loads"], row


def loaded_by(engine: str) -> dict[str, float]:
    """The kinds of folders that an engine loads, and how near it is to transformers."""
    loaded = [row for row in ROWS if row["loads"] and row["engine"].startswith(engine)]
    return {row["name"].partition("-")[2]: row["within"] for row in loaded}


def test_all_kinds_that_engines_know_were_run():
    seen = {engine: loaded_by(engine) for engine in ("vLLM", "llama.cpp", "transformers")}
    assert {*seen["vLLM"]} == {"uniform", "nas", NARROW, STACKED, *QUANTISED} - {*GPU_ALONE}
    assert {*seen["llama.cpp"]} == {*LAYOUTS, NARROW, STACKED} and {*seen["transformers"]} == {
        *QUANTISED
    }
    bounds = {kind: within for kind, (_, within) in QUANTISED.items()}
    for loaded in seen.values():
        assert all(within <= bounds.get(kind, WITHIN) for kind, within in loaded.items())
