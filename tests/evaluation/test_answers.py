"""Shares of right answers, and how two models' answers to the same questions differ."""

import math

import numpy as np
import pytest
from rich.console import Console

from compressor.evaluation.answers import Answers, judged, paired, share
from compressor.report.answers import notes, table

BEFORE, AFTER = [1, 1, 0, 0, 1, 0, 1, 1], [1, 0, 0, 1, 0, 0, 1, 0]


def test_a_share_has_the_error_of_a_sample():
    said = share(BEFORE)
    assert said["value"] == pytest.approx(5 / 8)
    assert said["stderr"] == pytest.approx(np.std(BEFORE, ddof=1) / math.sqrt(8))
    assert share([1]) == {"value": 1, "stderr": None}


def test_pairs_say_less_than_two_shares_would_allow():
    said = paired(BEFORE, AFTER)
    assert (said["lost"], said["won"]) == (3, 1)
    assert said["difference"] == pytest.approx((said["won"] - said["lost"]) / 8)
    changes = np.subtract(AFTER, BEFORE)
    assert said["difference_stderr"] == pytest.approx(np.std(changes, ddof=1) / math.sqrt(8))
    apart = math.hypot(share(BEFORE)["stderr"], share(AFTER)["stderr"])
    assert said["difference_stderr"] < apart
    assert paired(BEFORE, BEFORE)["difference_stderr"] == 0


@pytest.mark.parametrize("alone", [True, False])
def test_the_table_fits_a_terminal(alone, capsys):
    right = {"acc": [*BEFORE] * 400, "acc_norm": [*AFTER] * 400}
    theirs = {"arc_challenge": Answers(right, 0.25, "lm-eval 1.0, files")}
    ours = {"arc_challenge": Answers(dict.fromkeys(right, right["acc_norm"]), 0.25, "lm-eval 1.0")}
    told = judged(ours, None if alone else theirs)
    found = {"model": "m" * 20, "against": None if alone else "s" * 20, "tasks": told}
    Console(width=80).print(table(found))
    said = capsys.readouterr().out
    (row,) = (line for line in said.splitlines() if "arc_challenge, acc " in line)
    shown = (
        ["3,200", "25.0", "37.5", "±0.9"] if alone else ["3,200", "25.0", "62.5", "±0.9", "37.5"]
    )
    assert row.split()[2 : 2 + len(shown)] == shown
    if not alone:
        assert row.split()[-4:] == ["-25.0", "±1.2", "1,200", "400"]
    assert all(len(line) <= 80 for line in [*said.splitlines(), *notes(found)])
