"""Philox4x32-10 against the known answers that its authors publish with Random123."""

import pytest
import torch

from compressor.kernels.philox import first_words, philox

ONES = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ONES,) * 4, (ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (PI[:4], PI[4:], "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter, key, words):
    found = philox([torch.tensor([word]) for word in counter], key)
    assert " ".join(f"{word.item():08x}" for word in found) == words


def test_counter_and_key_are_filled_by_halves():
    seed, offset = PI[5] << 32 | PI[4], PI[3] << 32 | PI[2]
    wanted = philox([torch.tensor([w]) for w in (3, 0, PI[2], PI[3])], PI[4:])[0]
    assert first_words(seed, offset, 4, torch.device("cpu"))[3] == wanted
    signed = first_words(seed - 2**64, offset, 4, torch.device("cpu"))
    assert signed[3] == wanted
