"""Jobs of a few steps, with recovery and without."""

import pytest

from compressor.recovery import training


@pytest.fixture
def quick(text_file):
    """Options of a run of six steps, but for SOURCE, DEST and the target."""
    return [
        "--calibration", text_file, "--length", 32, "--samples", 4, "--no-verify", "--recover", "lora",
        "--recover-steps", 6, "--recover-batch", 4, "--recover-accumulate", 2,
        "--recover-save-every", 2, "--learning-rate", 0.01, "--distill-weight", 0.2,
    ]  # fmt: skip


@pytest.fixture
def unrecovered(quick):
    """The same job without recovery."""
    return quick[: quick.index("--recover")]


@pytest.fixture
def alone(quick):
    """Options of the stage `recover` from those of `compress`."""
    samples = quick.index("--samples")
    return quick[:samples] + quick[samples + 2 :]


@pytest.fixture
def dies_after_a_save(monkeypatch):
    """Ends the first training after its second saved state, as the user would."""
    real, saved = training.save, []

    def save(*arguments):
        real(*arguments)
        saved.append(arguments)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "save", save)
