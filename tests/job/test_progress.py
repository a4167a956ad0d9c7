"""What a run tells on stderr, where a terminal reads it and where a file does."""

import re
import sys
import time

import pytest
from rich.table import Table

from compressor.job import progress
from compressor.job.console import console
from compressor.job.progress import Lines
from compressor.report.result import Result
from compressor.report.table import warnings


def test_a_file_gets_a_line_when_a_stage_is_done(capsys):
    with Lines(False).stage("score") as told:
        told(1, 2)
        told(2, 2)
    assert re.fullmatch(r"score +2/2, \d+\.\d s, done\n", capsys.readouterr().err)


def test_a_long_stage_is_heard_of_meanwhile(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.02)
    with Lines(False).stage("repair") as told:
        told(1, 2)
        time.sleep(0.2)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"repair +1/2, 0 s; 0 s in all", first) and last.endswith("done")


def test_a_stage_that_fails_is_not_called_done(capsys):
    with pytest.raises(ValueError), Lines(False).stage("score"):
        raise ValueError
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Lines(False).stage("score") as told:
        told(2, 2)
    shown = capsys.readouterr().err
    assert "━" in shown and "2/2" in shown and "done" not in shown


def test_quiet(capsys):
    lines = Lines(True)
    lines.fact("calibration", "a text")
    with lines.stage("score") as told:
        told(1, 1)
    assert capsys.readouterr().err == ""


def test_nothing_is_cut_short_in_a_file(capsys):
    wide = Table(*(f"column {i} of a result" for i in range(12)))
    wide.add_row(*(f"{i}" * 20 for i in range(12)))
    console().print(wide)
    console().print("a sentence " * 30)
    shown = capsys.readouterr().out
    assert "…" not in shown and "11" * 20 in shown and ("a sentence " * 30).strip() in shown


def result(dest: str, warnings: list[str]) -> Result:
    sizes = {"parameters_before": 2, "bytes_before": 4}
    return Result("in", dest, "llama", "llama", **sizes, warnings=warnings)


def test_a_warning_names_its_result_unless_all_have_it():
    results = [
        result("out/keep-0.9", ["the text is short"]),
        result("out/keep-0.7", ["the text is short", "a block is worse"]),
    ]
    assert warnings(results) == ["the text is short", "keep-0.7: a block is worse"]
    assert warnings(results[1:]) == results[1].warnings
