"""Where a device's memory runs out, fewer tokens go through at once, and the result is the same."""

import json

import pytest
import torch
from jobs import compress

from compressor.cli.running import as_error
from compressor.model import stream as module

OPTIONS = "--keep-blocks 0.7 --repair none --samples 12 --length 16 --no-verify --evaluation none"
MESSAGE = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8 GiB. If reserved, set a variable."
)


@pytest.fixture
def room(monkeypatch):
    """A function that gives the blocks room for so many tokens at once; what they were given is told."""
    monkeypatch.setattr(module, "BATCH_TOKENS", 128)
    states_of, given = module.states_of, []

    def give(count: int, after: int = 0) -> list[int]:
        given.clear()

        def measured(output):
            hidden = states_of(output)
            given.append(hidden.shape[0] * hidden.shape[1])
            if given[-1] > count and len(given) > after:
                raise torch.OutOfMemoryError(MESSAGE)
            return hidden

        monkeypatch.setattr(module, "states_of", measured)
        return given

    return give


def job(llama, text_file, dest, *more):
    return compress(llama, dest, *OPTIONS.split(), "--calibration", text_file, *more)


@pytest.mark.parametrize(
    "more", ["", "--method wanda-sp", "--allocate measured --layout per-layer"]
)
def test_half_as_many_until_they_fit(llama, text_file, tmp_path, capsys, room, more):
    room(10**9)
    assert job(llama, text_file, tmp_path / "whole", *more.split()) == 0
    capsys.readouterr()
    given = room(40)
    assert job(llama, text_file, tmp_path / "small", *more.split()) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "cpu does not hold 128 tokens at once; going on with 64." in said
    assert "cpu does not hold 64 tokens at once; going on with 32." in said
    assert max(n for n in given if n <= 40) == 32
    plans = [
        json.loads((tmp_path / name / "compression.json").read_text())["plan"]["blocks"]
        for name in ("whole", "small")
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("after", [3, 6, 9])
def test_also_in_the_middle_of_a_pass(llama, text_file, tmp_path, capsys, room, after):
    """Blocks that are done stay; but not those of an allocation, which hold something of every batch."""
    more = ["--allocate", "measured", "--layout", "per-layer"]
    room(10**9)
    assert job(llama, text_file, tmp_path / "whole", *more) == 0
    room(40, after)
    assert job(llama, text_file, tmp_path / "small", *more) == 0
    assert "going on with 32." in " ".join(capsys.readouterr().err.split())
    plans = [
        json.loads((tmp_path / name / "compression.json").read_text())["plan"]["blocks"]
        for name in ("whole", "small")
    ]
    assert plans[0] == plans[1]


def test_one_sequence_at_a_time_is_not_tried_again(llama, text_file, tmp_path, capsys, room):
    room(10)
    assert job(llama, text_file, tmp_path / "out", "--method", "kfac") == 4
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "Memory ran out: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8 GiB." in said
    )


def test_a_sequence_that_does_not_fit_is_said_with_the_numbers(
    llama, text_file, tmp_path, capsys, room
):
    room(10)
    assert job(llama, text_file, tmp_path / "out") == 4
    said = " ".join(capsys.readouterr().err.split())
    assert "One sequence of 16 tokens does not fit the memory of cpu" in said
    assert "Tried to allocate 2.00 GiB. GPU 0 has 8 GiB." in said and "variable" not in said
    assert "--length" in said


def test_what_went_in_is_remembered_when_a_job_goes_on(llama, text_file, tmp_path, capsys, room):
    given = room(10)
    assert job(llama, text_file, tmp_path / "out") == 4
    given.clear()
    room(40)
    assert job(llama, text_file, tmp_path / "out", "--resume") == 0
    assert max(given) <= 16  # what the interrupted one came to


def test_every_machine_failure_is_a_sentence():
    lost = RuntimeError(
        "CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later"
    )
    assert str(as_error(lost)).startswith(
        "The GPU failed: CUDA error: unspecified launch failure. "
    )
    full = as_error(torch.OutOfMemoryError(MESSAGE))
    assert "2.00 GiB" in str(full) and "variable" not in str(full)
    assert (lost := as_error(lost)) and lost.exit_code == full.exit_code == 4
