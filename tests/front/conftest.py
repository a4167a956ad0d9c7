"""A model in memory, and token ids."""

import pytest
import torch
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(3, 110, (6, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def loaded(llama):
    return AutoModelForCausalLM.from_pretrained(llama, dtype="auto")
