"""Sequences to train on, and the recovery's settings for a model that takes no time."""

import pytest
import torch

from compressor.recovery.data import Example
from compressor.recovery.settings import Recovery


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
def quick() -> Recovery:
    return Recovery("lora", steps=6, batch=4, accumulate=2, learning_rate=1e-2, save_every=2)
