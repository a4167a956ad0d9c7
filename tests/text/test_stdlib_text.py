"""The splits of the standard library."""

import pytest

from compressor.text.stdlib_text import (
    PROSE,
    docstrings,
    held_out_modules,
    stdlib_documents,
    stdlib_modules,
    stdlib_prose,
)


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


@pytest.mark.parametrize("documents", [stdlib_documents, stdlib_prose])
def test_unknown_split(documents):
    with pytest.raises(ValueError, match="'both'"):
        documents("both")


def test_prose_is_enough_to_calibrate_on_and_no_code():
    train, held_out = map(stdlib_prose, ("train", "held-out"))
    assert not set(train) & set(held_out)
    assert (
        sum(map(len, train)) > 8 * 65_536
    )  # 4 characters a token, with as much again to choose from
    assert sum(map(len, held_out)) > 65_536
    code = sum(text.count("    return ") for text in train)
    assert code < 0.1 * sum(text.count("    return ") for text in stdlib_documents("train"))


def test_docstrings_are_those_of_modules_classes_and_functions_that_are_long():
    long = {name: f"{name} " + "says what it is for. " * 10 for name in "mcfas"}
    source = (
        f'"""{long["m"]}"""\n'
        f'class C:\n    """{long["c"]}"""\n    def f(self):\n        """{long["f"]}"""\n'
        f'async def a():\n    """{long["a"]}"""\n'
        f'x = """{long["s"]}"""\ndef g():\n    """{"y" * (PROSE - 1)}"""\n'
    )
    found = [*docstrings(source)]
    assert sorted(text.split()[0] for text in found) == ["a", "c", "f", "m"]


def test_a_source_that_does_not_parse_has_no_docstrings():
    assert not [*docstrings("print 1")]
