"""The splits of the standard library."""

import pytest

from compressor.text.stdlib_text import held_out_modules, stdlib_documents, stdlib_modules


def test_splits_share_nothing_and_leave_nothing_out():
    train, held_out = (set(stdlib_documents(s)) for s in ("train", "held-out"))
    assert not [text for text in train & held_out if len(text) > 200]  # but for one-line packages
    assert len(train) > 200
    assert len(held_out) > 20


def test_held_out_names_exist_here_and_are_a_tenth():
    names, modules = held_out_modules(), stdlib_modules()
    assert len(names & set(modules)) > 0.7 * len(names)
    assert 0.03 < len(names) / len(modules) < 0.2


def test_tests_and_tables_are_not_text():
    assert not [m for m in stdlib_modules() if m.startswith(("test.", "encodings.", "pydoc_data."))]


def test_unknown_split():
    with pytest.raises(ValueError, match="'both'"):
        stdlib_documents("both")
