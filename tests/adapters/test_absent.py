"""An adapter whose library is not there names its installation; `make adapters` has the libraries."""

import sys
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    ("adapter", "modules", "package"),
    [
        (
            "torch_pruning",
            ("torch_pruning", "torch_pruning.pruner", "torch_pruning.pruner.importance"),
            "torch-pruning",
        ),
        ("llm_compressor", ("llmcompressor", "llmcompressor.core"), "llmcompressor"),
    ],
)
def test_a_library_that_is_absent_is_named(monkeypatch, adapter, modules, package):
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"compressor.adapters.{adapter}", raising=False)
    with pytest.raises(ImportError, match=f"install it: pip install {package}"):
        import_module(f"compressor.adapters.{adapter}")
