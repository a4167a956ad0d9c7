"""What recovery is tested on: sequences, settings, and jobs of a few steps."""

import pytest
import torch
from ranked import started  # noqa: F401  # a fixture

from compressor.config.recovery import RecoveryConfig
from compressor.recovery import training
from compressor.recovery.data import Example


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    """Random sequences of several lengths; of every other one the last half alone counts."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(12):
        ids = torch.randint(3, 120, (6 + 3 * (i % 4),), generator=generator)
        labels = ids.clone()
        if i % 2:
            labels[: len(ids) // 2] = -100
        found.append(Example(ids, labels))
    return found


@pytest.fixture
def quick() -> RecoveryConfig:
    return RecoveryConfig("lora", steps=6, batch=4, accumulate=2, learning_rate=1e-2, save_every=2)


@pytest.fixture
def options(text_file):
    """Options of a run of six steps, but for SOURCE, DEST and the target."""
    return [
        "--calibration", text_file, "--length", 32, "--samples", 4, "--no-verify", "--recover", "lora",
        "--recover-steps", 6, "--recover-batch", 4, "--recover-accumulate", 2,
        "--recover-save-every", 2, "--learning-rate", 0.01, "--distill-weight", 0.2,
    ]  # fmt: skip


@pytest.fixture
def unrecovered(options):
    """The same job without recovery."""
    return options[: options.index("--recover")]


@pytest.fixture
def alone(options):
    """Options of the stage `recover` from those of `compress`."""
    samples = options.index("--samples")
    return options[:samples] + options[samples + 2 :]


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
