"""Which channels a unit owns, in separate, fused and interleaved tensors."""

import pytest
import torch

from compressor.model.families import FAMILIES, Slice

SIZES = {"q": 6, "k": 3, "v": 3, "c": 1}
UNITS = 4


@pytest.mark.parametrize("owns", ["q", "k", "c", "q k v", "qkv", "c c"])
def test_units_own_every_channel_once(owns):
    part = Slice("x.weight", 0, owns)
    every = [part.channels([unit], UNITS, SIZES).tolist() for unit in range(UNITS)]
    assert sorted(c for channels in every for c in channels) == list(
        range(UNITS * part.size(SIZES))
    )
    kept = part.channels([1, 3], UNITS, SIZES).tolist()
    assert sorted(kept) == sorted(every[1] + every[3])


@pytest.mark.parametrize(
    ("owns", "expected"),
    [
        ("k", [3, 4, 5, 9, 10, 11]),
        ("k v", [3, 4, 5, 9, 10, 11, 15, 16, 17, 21, 22, 23]),
        ("kv", [6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23]),
    ],
)
def test_channels_are_in_the_tensors_order(owns, expected):
    assert Slice("x.weight", 0, owns).channels([1, 3], UNITS, SIZES).tolist() == expected


@pytest.mark.parametrize("owns", ["q", "q k v", "qkv", "c c"])
def test_pieces_are_the_channels_of_each_unit(owns):
    part = Slice("x.weight", 0, owns)
    values = torch.arange(2.0 * UNITS * part.size(SIZES)).view(2, -1)
    pieces = part.pieces(values, UNITS, SIZES)
    assert [p.shape[-1] for p in pieces] == [SIZES[letter] for letter in owns.replace(" ", "")]
    for unit in range(UNITS):
        own = torch.cat([piece[:, unit] for piece in pieces], 1)
        assert torch.equal(own, values[:, part.channels([unit], UNITS, SIZES)])


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
def test_projections_are_read_in_four_steps(family):
    readers = family.readers()
    groups = ["attention"] if family.experts else ["attention", "ffn"]  # experts go whole
    whole = not any(part.owns for part in family.attention)  # latent attention: nothing of it goes
    assert all(readers[whole:]) and len(readers) == 2 * len(groups)
    assert [names[0] for names in readers[1::2]] == [family.output(group) for group in groups]
