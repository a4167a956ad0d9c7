"""Folders that a test may spoil."""

import shutil

import pytest


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


@pytest.fixture
def sharded(make_checkpoint, tmp_path):
    return make_checkpoint(tmp_path / "sharded", max_shard_size="20KB")
