"""A folder to be spoiled and mended."""

import shutil
from pathlib import Path

import pytest
import torch
from edits import edit_json, edit_tensors
from spoiled import logits, silence

from compressor.analysis.doctor.fault import Asked
from compressor.config.runtime import Runtime
from compressor.job.doctor import mend
from compressor.job.progress import Lines


@pytest.fixture(scope="session")
def silent(make_checkpoint, tmp_path_factory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("silent") / "model")
    edit_tensors(folder, silence)
    # A class that 4.57 knows, so that none is looked for.
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    return folder


@pytest.fixture(scope="session")
def right(silent) -> torch.Tensor:
    """What it computes."""
    return logits(silent)


@pytest.fixture
def folder(silent, tmp_path) -> Path:
    """A copy to be spoiled."""
    return shutil.copytree(silent, tmp_path / "folder")


@pytest.fixture
def cure(folder):
    """Mends the copy, with the answers that are given; what came of it, and where."""

    def cured(**answers) -> tuple[dict, Path]:
        out = folder.with_name("fixed")
        return mend(folder, out, Asked(**answers), Runtime(), Lines(True)), out

    return cured
