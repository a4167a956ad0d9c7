"""A tiny model and short texts, under the names that `make real` knows."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import stock
from real_grid import GRID


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """The texts under the names that `make real` knows."""
    folder = tmp_path_factory.mktemp("data")
    lines = [f"{i} quick brown foxes jump over {i * i} lazy dogs.\n" for i in range(80)]
    for name in (stock.CALIBRATION, *stock.JUDGED.values()):
        (folder / name).parent.mkdir(exist_ok=True)
    for name in (stock.CALIBRATION, stock.JUDGED["wikitext2"]):
        (folder / name).write_text("".join(lines))
    (folder / stock.JUDGED["c4"]).write_text("\n".join(json.dumps({"text": x}) for x in lines))
    (folder / stock.JUDGED["tinystories"]).write_text(json.dumps(lines))
    return folder


@pytest.fixture(scope="session")
def models(make_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_checkpoint(folder / GRID[0].model)
    return folder


@pytest.fixture
def model(models) -> Path:
    return models / GRID[0].model


@pytest.fixture
def without(monkeypatch):
    """Makes a package one that is not installed."""
    find = importlib.util.find_spec

    def without(package: str) -> None:
        found = lambda name, *given: None if name == package else find(name, *given)  # noqa: E731
        monkeypatch.setattr(importlib.util, "find_spec", found)
        monkeypatch.setitem(sys.modules, package, None)

    return without
