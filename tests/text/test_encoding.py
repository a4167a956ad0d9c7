"""The first tokens of long strings, of which no more is encoded than they need."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from compressor.text.encoding import GROWTH, LEAST, MARGIN, ROOMY, encode_openings, opening
from compressor.text.stdlib_text import stdlib_documents
from compressor.text.texts import Text
from compressor.text.tokens import tokenize

TEXT = "\n".join(stdlib_documents("train")[:4])[:200_000]


def trained(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer as GPT-2 has it, as Llama has it (no words before BPE), as T5 has it, or of words."""
    if kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=800, show_progress=False, special_tokens=["<unk>"], unk_token="<unk>"
        )
    elif kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(
            vocab_size=800, special_tokens=["[UNK]"], show_progress=False
        )
    else:
        made = Tokenizer(models.BPE())
        if kind == "bytes":
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        else:
            made.normalizer = normalizers.Replace(" ", "▁")
            made.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=800, show_progress=False)
    lines = TEXT[:40_000].split("\n")
    made.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.fixture(scope="module", params=["bytes", "whole", "unigram", "wordpiece"])
def tokenizer(request):
    return trained(request.param)


STRINGS = {
    "prose": TEXT,
    "one word": "".join(TEXT.split()),
    "one letter": "a" * 60_000,
    "spaces": " " * 60_000 + "end",
    "short": "a few words",
    "nothing": "",
}


@pytest.mark.parametrize("wanted", [1, 20, 255])
def test_the_first_tokens_are_those_of_the_whole(tokenizer, wanted):
    strings = list(STRINGS.values())
    found = encode_openings(tokenizer, strings, wanted)["input_ids"]
    for name, string, ids in zip(STRINGS, strings, found, strict=True):
        whole = tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"]
        assert ids[:wanted] == whole[:wanted], name


class Counting:
    """A tokenizer that counts the characters it is given; each gives `density` tokens."""

    bos_token_id = None

    def __init__(self, density: float):
        self.density, self.characters = density, 0

    def __call__(self, strings, **options):
        self.characters += sum(map(len, strings))
        return {"input_ids": [[7] * int(len(s) * self.density) for s in strings]}


def test_no_more_is_encoded_than_is_needed():
    row = "some words " * 300_000
    counting = Counting(0.25)
    (ids,) = tokenize(Text("x", "documents", [row]), counting, 255).sequences
    assert len(ids) == 255
    assert counting.characters <= max(LEAST, ROOMY * 255)


def test_an_opening_that_has_too_few_tokens_is_taken_longer():
    counting = Counting(1 / 40)
    (ids,) = encode_openings(counting, ["word " * 100_000], 300)["input_ids"]
    assert len(ids) >= 300 + MARGIN
    assert counting.characters <= ROOMY * 300 * (1 + GROWTH)


def test_a_string_of_few_tokens_is_encoded_as_a_whole():
    (ids,) = encode_openings(Counting(1 / 5000), ["word " * 20_000], 100)["input_ids"]
    assert len(ids) == 20


def test_an_opening_ends_at_a_space():
    assert opening("one two three", 9) == "one two"
    assert opening("one\ntwo three", 6) == "one"
    assert opening("onetwothree", 6) == "onetwo"
    assert opening("one two", 7) == "one two"


def test_texts_that_are_cut_anyway_are_what_they_were(make_checkpoint, tmp_path):
    """A document of many times the length gives the sequence that all of it would give."""
    from compressor.model.checkpoint import Checkpoint

    tokenizer = Checkpoint(make_checkpoint(tmp_path / "m")).tokenizer()
    (found,) = tokenize(Text("x", "documents", [TEXT]), tokenizer, 64).sequences
    whole = tokenizer(TEXT, verbose=False)["input_ids"]
    assert torch.equal(found, torch.tensor(whole[:64]))
