"""Texts, cut by the protocol that is written down."""

import pytest
import torch

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.text.texts import Text
from compressor.text.tokens import (
    TokenSet,
    describe,
    held_back,
    joined,
    parse_range,
    spread_excerpts,
    tokenize,
)


@pytest.fixture(scope="module")
def tokenizer(llama):
    return Checkpoint(llama).tokenizer()


def test_documents_are_bos_and_text_cut_at_the_length(tokenizer):
    text = Text("x", "documents", ["abcd" * 20, "", "ef", "ghij" * 3])
    tokens = tokenize(text, tokenizer, 16)
    assert [len(s) for s in tokens.sequences] == [16, 3, 13]
    assert all(s[0] == tokenizer.bos_token_id for s in tokens.sequences)
    assert tokenizer.decode(tokens.sequences[1][1:]).replace(" ", "") == "ef"


def test_windows_cover_the_text_without_overlap(tokenizer):
    string = "".join(chr(97 + i % 26) for i in range(100))
    tokens = tokenize(Text("x", "windows", [string]), tokenizer, 11)
    body = torch.cat([s[1:] for s in tokens.sequences])
    assert body.tolist() == tokenizer(string, add_special_tokens=False)["input_ids"]
    assert tokens.protocol["stride"] == 10
    spread = tokenize(Text("x", "windows", [string]), tokenizer, 11, samples=4)
    assert [s[1] - tokens.sequences[0][1] for s in spread.sequences] == [0, 20, 50 - 26, 70 - 52]


@pytest.mark.parametrize(
    ("end", "starts"), [("\n", [8, 6408, 12808, 19208]), (" ", [0, 6400, 12800, 19200])]
)
def test_excerpts_begin_with_a_line_at_equal_distances(end, starts):
    string = "".join(f"{i:07d}{end}" for i in range(3200))
    excerpts = spread_excerpts([string[:9000], string[9000:]], 4, 640)
    assert excerpts == [string[s : s + 640] for s in starts]
    assert spread_excerpts([string], 21, 640) == []


def test_few_windows_of_a_long_text_are_its_excerpts(tokenizer):
    string = "".join(f"{i:07d}\n" for i in range(4000))
    tokens = tokenize(Text("x", "windows", [string]), tokenizer, 21, samples=5)
    expected = tokenizer(string[8:], add_special_tokens=False)["input_ids"][:20]
    assert tokens.sequences[0][1:].tolist() == expected
    assert [len(s) for s in tokens.sequences] == [21] * 5
    assert tokens.protocol["stride"] is None


def test_ranges_take_documents_or_windows(tokenizer):
    text = Text("x", "documents", [c * 40 for c in "abcd"])
    assert len(tokenize(text, tokenizer, 64, selected="1:3").sequences) == 2
    windows = Text("x", "windows", ["a" * 400])
    assert len(tokenize(windows, tokenizer, 41, selected="2:5").sequences) == 3


@pytest.mark.parametrize(
    ("budget", "documents", "windows"),
    [(1, 1, 1), (41, 1, 1), (42, 2, 1), (82, 2, 2), (83, 3, 2), (10_000, 4, 4)],
)
def test_as_many_sequences_as_come_to_so_many_tokens(tokenizer, budget, documents, windows):
    strings = [c * 40 for c in "abcd"]
    for kind, expected in (("documents", documents), ("windows", windows)):
        text = Text("x", kind, strings)
        assert len(tokenize(text, tokenizer, 41, budget=budget).sequences) == expected
        assert len(tokenize(text, tokenizer, 41, 3, budget=budget).sequences) == 3


@pytest.mark.parametrize("text", ["1", "a:b", "1:2:3"])
def test_bad_range(text):
    with pytest.raises(InputError, match="is not A:B"):
        parse_range(text)


@pytest.mark.parametrize("strings", [[], [""], ["too short"]])
@pytest.mark.parametrize("kind", ["documents", "windows"])
def test_empty_or_short_text(tokenizer, strings, kind):
    with pytest.raises(InputError, match="empty or too short"):
        tokenize(Text("x", kind, strings), tokenizer, 64)


def test_batches_hold_every_token_once():
    lengths = [5, 1, 9, 9, 3, 20, 2]
    tokens = TokenSet([torch.full((n,), n) for n in lengths])
    for budget in (1, 18, 1000):
        found = tokens.batches(budget)
        real = torch.cat([b.ids[b.mask] for b in found])
        assert sorted(real.tolist()) == sorted(n for n in lengths for _ in range(n))
        assert all(b.ids.numel() <= max(budget, 20) for b in found)


def test_two_texts_side_by_side(tokenizer):
    first = tokenize(Text("x.txt", "windows", ["ab" * 200]), tokenizer, 21)
    second = tokenize(Text("own.jsonl", "documents", ["cd" * 20] * 9), tokenizer, 41, budget=100)
    both = joined(first, second)
    assert both.sequences == first.sequences + second.sequences
    assert both.tokens == first.tokens + 123  # documents until there are 100
    assert both.protocol == first.protocol | {"also": second.protocol}
    assert describe(both.protocol) == f"{describe(first.protocol)}; and {describe(second.protocol)}"
    assert "own.jsonl: 3 x BOS + document" in describe(both.protocol)


def test_protocol_says_what_was_read(tokenizer):
    protocol = tokenize(Text("x.txt", "windows", ["ab" * 200]), tokenizer, 21).protocol
    assert protocol["sha256"] == Text("y", "windows", ["ab" * 200]).sha256
    assert describe(protocol) == "x.txt: 20 x BOS + window, at most 21 tokens, 420 tokens in all"


@pytest.mark.parametrize(
    ("count", "every", "places"),
    [
        (0, 8, []),
        (1, 8, [0]),
        (5, 8, [4]),
        (32, 8, [28, 29, 30, 31]),
        (128, 16, [*range(120, 128)]),
        (128, 8, [*range(56, 64), *range(120, 128)]),
        (100, 8, [*range(44, 50), *range(94, 100)]),
    ],
)
def test_neighbours_are_held_back_together(count, every, places):
    """At the ends of equal parts; of two texts side by side, at the end of each."""
    assert held_back(count, every) == places
    fitted, held = TokenSet([torch.tensor([i]) for i in range(count)]).split(every)
    assert [int(s) for s in held.sequences] == places
    assert sorted(int(s) for s in (*fitted.sequences, *held.sequences)) == [*range(count)]
