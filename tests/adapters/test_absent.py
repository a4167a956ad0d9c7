"""An adapter whose library is not there names its installation; `make adapters` has the libraries."""

import sys
from importlib import import_module

import pytest


def test_a_library_that_is_absent_is_named(monkeypatch):
    for name in ("torch_pruning", "torch_pruning.pruner", "torch_pruning.pruner.importance"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "compressor.adapters.torch_pruning", raising=False)
    with pytest.raises(ImportError, match="install it: pip install torch-pruning"):
        import_module("compressor.adapters.torch_pruning")
