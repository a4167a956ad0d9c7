"""Where a device's memory runs out, fewer tokens go through at once, and the result is the same."""

import json

import pytest
import torch
from jobs import compress, said
from safetensors.torch import load_file

from compressor.errors import as_error
from compressor.evaluation import reference
from compressor.job import evaluate
from compressor.measuring import guard
from compressor.model import stream as module
from compressor.model.checkpoint import Checkpoint
from compressor.repairing import refine
from compressor.text.tokens import TokenSet

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


def failing(monkeypatch, place, name: str, calls: set[int]) -> list[int]:
    """Memory runs out in these calls of a function; the numbers of all calls are told."""
    former, made = getattr(place, name), []

    def full(*given, **more):
        made.append(len(made))
        if made[-1] in calls:
            raise torch.OutOfMemoryError(MESSAGE)
        return former(*given, **more)

    monkeypatch.setattr(place, name, full)
    return made


def test_steps_of_a_repair_have_parts_and_are_the_same(
    llama, text_file, tmp_path, capsys, monkeypatch
):
    """Of 512 tokens, here 192 in one step; blocks that are done stay, and so does the result."""
    states_of = refine.states_of

    def full(output):
        hidden = states_of(output)
        if hidden.shape[0] * hidden.shape[1] > 40:
            raise torch.OutOfMemoryError(MESSAGE)
        return hidden

    options = [*OPTIONS.split(), "--calibration", text_file, "--repair", "refine"]
    assert compress(llama, tmp_path / "whole", *options) == 0
    capsys.readouterr()
    monkeypatch.setattr(refine, "states_of", full)
    assert compress(llama, tmp_path / "small", *options) == 0
    told = said(capsys)
    assert "cpu does not hold 512 tokens at once; going on with 256." in told
    assert "going on with 32." in told and "going on with 16." not in told
    whole, small = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "small"))
    for name, tensor in whole.items():
        torch.testing.assert_close(small[name], tensor, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("call", [0, 1])
def test_a_measurement_is_made_again(llama, text_file, tmp_path, capsys, monkeypatch, call):
    """That of the source or of the result; then the source's states are of as many tokens, too."""
    texts = ["--calibration", text_file, "--evaluation", text_file]
    options = [*OPTIONS.split()[:-2], *texts]
    assert compress(llama, tmp_path / "whole", *options) == 0
    capsys.readouterr()
    made = failing(monkeypatch, reference, "run", {call})
    assert compress(llama, tmp_path / "small", *options) == 0
    assert len(made) == 3 + call
    assert "cpu does not hold 1,024 tokens at once; going on with 512." in said(capsys)
    whole, small = (
        json.loads((tmp_path / name / "compression.json").read_text())
        for name in ("whole", "small")
    )
    for name in ("perplexity_before", "perplexity_after"):
        assert small[name] == pytest.approx(whole[name], rel=1e-5)


def test_the_stage_that_measures_says_it_too(llama, monkeypatch):
    text, told = TokenSet([torch.arange(5, 25)] * 60), []
    stream = module.BlockStream(Checkpoint(llama))
    expected = evaluate.measured(stream, text)
    failing(monkeypatch, reference, "run", {0})
    found = evaluate.measured(stream, text, told.append)
    assert found["nll"] == pytest.approx(expected["nll"], rel=1e-6)
    assert told == ["cpu does not hold 1,024 tokens at once; going on with 512."]


def test_plans_that_are_compared_already_are_not_again(
    llama, text_file, tmp_path, capsys, monkeypatch
):
    more = ["--allocate", "measured", "--layout", "per-layer"]
    made = failing(monkeypatch, guard, "loss_after", set())
    assert job(llama, text_file, tmp_path / "whole", *more) == 0
    plans = len(made)
    made = failing(monkeypatch, guard, "loss_after", {1})
    assert job(llama, text_file, tmp_path / "small", *more) == 0
    assert len(made) == plans + 1
    assert "going on with 1,024." in said(capsys)
    rows = [
        json.loads((tmp_path / n / "compression.json").read_text())["plan"]["about"]["held_back"][
            "rows"
        ]
        for n in ("whole", "small")
    ]
    for one, other in zip(*rows, strict=True):
        assert other == one | {"loss": pytest.approx(one["loss"], rel=1e-6)}
