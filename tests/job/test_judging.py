"""What a job says of the text that it measures on: whether the model knows such texts."""

import random
from pathlib import Path

import pytest

from compressor.config.job import JobConfig
from compressor.job.compress import run_job
from compressor.job.judging import FAR, far_notes
from compressor.job.progress import Lines

TRAINED = Path(__file__).parents[2] / "examples/tiny-llama"


def measured(nll: float, expected: float) -> dict:
    return {"nll": nll, "expected": expected, "protocol": {"source": "words.txt"}}


@pytest.mark.parametrize("above", [-0.2, 0.0, FAR - 0.01])
def test_a_text_that_the_model_expects(above):
    assert far_notes(measured(3 + above, 3.0)) == []


def test_a_text_that_surprises_the_model():
    (note,) = far_notes(measured(5.01, 3.0))
    assert "'words.txt'" in note
    assert "loses 5.01 nats a token there, and on text of its own would lose 3.00" in note


def test_nothing_is_measured():
    assert far_notes(None) == []


def test_a_job_tells_it_at_once_and_in_the_end(tmp_path, capsys):
    """The bundled model has read Python's sources, and no shuffled letters."""
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz    ", k=20_000)
    text = tmp_path / "letters.txt"
    text.write_text("".join(letters))
    told = []
    for evaluation in (str(text), "stdlib-held-out[0:16]"):
        config = JobConfig(TRAINED, tmp_path / "out").with_options(
            method="magnitude",
            repair="none",
            keep_blocks=[0.8],
            evaluation=evaluation,
            verify=False,
            overwrite=True,
        )
        (result,) = run_job(config, Lines(False))
        told.append([w for w in result.warnings if "far from what the model has learned" in w])
        printed = capsys.readouterr().err
        assert ("far from what the model has learned" in printed) == bool(told[-1])
    assert [len(notes) for notes in told] == [1, 0]
