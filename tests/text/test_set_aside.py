"""What results are measured on is neither fitted to nor chosen by: three sets, held apart."""

import json
import re
from itertools import pairwise

import pytest
import torch

from compressor.config.recovery import RecoveryConfig
from compressor.config.text import TextConfig
from compressor.errors import InputError
from compressor.job.reading import Texts, read_texts
from compressor.job.recovery_data import read_recovery
from compressor.measuring.guard import JUDGED
from compressor.model.checkpoint import Checkpoint
from compressor.repairing.streaming import HELD_BACK
from compressor.text.set_aside import LEAST, set_aside
from compressor.text.texts import Text


@pytest.fixture(scope="module")
def checkpoint(llama):
    return Checkpoint(llama)


def line(number: int) -> str:
    """40 characters, each a token of the tests' tokenizer."""
    return f"{number:03d}" + "abcdefghijkl" * 3 + "\n"


def written(folder, kind: str, count: int) -> str:
    """A text of so many different lines."""
    if kind == "windows":
        path = folder / "text.txt"
        path.write_text("".join(map(line, range(count))))
    else:
        path = folder / "text.jsonl"
        path.write_text("\n".join(json.dumps({"text": line(i)}) for i in range(count)))
    return str(path)


def numbers(sequences) -> set[int]:
    """The numbers of the lines that the sequences have parts of."""
    texts = ["".join(chr(i + 28) if i > 3 else "\n" for i in s.tolist()) for s in sequences]
    return {int(found) for text in texts for found in re.findall(r"\d{3}", text)}


def asked(text, **given) -> TextConfig:
    given = {"length": 41, "samples": 32} | given
    return TextConfig(calibration=text, **given)


def read(config: TextConfig, checkpoint) -> Texts:
    return read_texts(config, checkpoint, calibrates=True)


@pytest.mark.parametrize("kind", ["documents", "windows"])
@pytest.mark.parametrize("samples", [4, 32, None])
def test_three_sets_are_apart(checkpoint, tmp_path, kind, samples):
    """What is fitted, what chooses (ridge, training, allocations, recovery) and what measures."""
    recovery = RecoveryConfig(method="lora", steps=50, batch=4)
    text = written(tmp_path, kind, 200)
    config = asked(text, samples=samples)
    texts = read(config, checkpoint)
    measures = numbers(texts.evaluation.sequences)
    assert len(texts.evaluation.sequences) >= LEAST and len(measures) >= LEAST
    data = read_recovery(recovery, config, 0, checkpoint, texts.training)
    trained, held = (numbers(e.ids for e in part) for part in (data.train, data.held_back))
    assert trained and held and not (trained | held) & measures
    for every in (HELD_BACK, JUDGED):
        fitted, chooses = (numbers(part.sequences) for part in texts.calibration.split(every))
        assert fitted and not fitted & chooses
        assert not (fitted | chooses) & measures
        assert max(fitted | chooses) < min(measures)  # later text
    assert bool(texts.notes) == (samples is None)  # 65,536 tokens are more than the text has


def test_recovery_by_a_range_of_its_own_does_not_see_it(checkpoint, tmp_path):
    recovery = RecoveryConfig(method="lora", steps=50, batch=4, data_range="150:200")
    config = asked(written(tmp_path, "documents", 200))
    texts = read(config, checkpoint)
    data = read_recovery(recovery, config, 0, checkpoint, texts.training)
    trained = numbers(e.ids for e in (*data.train, *data.held_back))
    assert min(trained) == 150 and max(trained) < min(numbers(texts.evaluation.sequences))


@pytest.mark.parametrize("kind", ["documents", "windows"])
def test_the_calibration_is_the_same_whatever_is_evaluated(checkpoint, tmp_path, kind):
    text = written(tmp_path, kind, 200)
    found = [
        read(asked(text, evaluation=evaluation), checkpoint) for evaluation in (None, "none", text)
    ]
    for one, other in pairwise(found):
        assert all(map(torch.equal, one.calibration.sequences, other.calibration.sequences))
    default, off, own = (texts.evaluation for texts in found)
    assert off is None and len(own.sequences) >= 200 > len(default.sequences)


@pytest.mark.parametrize("kind", ["documents", "windows"])
def test_a_text_that_ends_gives_from_the_samples_and_says_so(checkpoint, tmp_path, kind):
    text = written(tmp_path, kind, 34)
    texts = read(asked(text), checkpoint)
    calibrated, measures = texts.calibration.sequences, texts.evaluation.sequences
    assert len(calibrated) < 32 and len(measures) >= 7
    assert not numbers(calibrated) & numbers(measures)
    (note,) = texts.notes
    assert "no sequences beside the 32 to calibrate on" in note and f"{len(measures)} of" in note
    given = read(asked(text, evaluation="none"), checkpoint)
    assert len(given.calibration.sequences) == 32 and not given.notes  # nothing had to go


@pytest.mark.parametrize("kind", ["documents", "windows"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_text_too_short_for_both_measures_on_the_samples(checkpoint, tmp_path, kind, count):
    texts = read_texts(asked(written(tmp_path, kind, count)), checkpoint, calibrates=False)
    assert texts.calibration is None and len(texts.evaluation.sequences) >= 1
    assert "too short to set a part of it aside" in texts.notes[0]


def test_a_range_that_lies_in_the_end_is_calibrated_on(checkpoint, tmp_path):
    config = asked(written(tmp_path, "documents", 200), calibration_range="195:200")
    texts = read(config, checkpoint)
    assert numbers(texts.calibration.sequences) == {*range(195, 200)}
    assert "too short" in texts.notes[0]


def test_documents_keep_their_places(checkpoint):
    text = Text("x", "documents", [line(i) if i % 2 else " " for i in range(100)])
    training, end = set_aside(text, checkpoint.tokenizer(), 41, 16)
    assert training.strings[: 100 - len(end.strings)] + end.strings == text.strings
    assert len(training.strings) == 100 and not any(training.strings[-len(end.strings) :])
    assert training.part == f"all but {end.part}" and end.part.startswith("documents ")


@pytest.mark.parametrize("kind", ["documents", "windows"])
def test_nothing_of_an_empty_text(checkpoint, kind):
    text = Text("x", kind, [])
    assert set_aside(text, checkpoint.tokenizer(), 41, 16) == (text, None)


def test_no_calibration_text_is_no_excuse(checkpoint, tmp_path):
    """A method that looks at nothing is measured all the same, and an empty text refused."""
    config = asked(written(tmp_path, "documents", 0))
    with pytest.raises(InputError, match="empty or too short"):
        read_texts(config, checkpoint, calibrates=False)
