"""Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011), in integer tensors.

Random numbers are a function of (seed, offset, stream): no state, the same on every device, and in
csrc/philox.h the same in C++ and CUDA.
"""

import torch

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def philox(counter: list[torch.Tensor], key: tuple[int, int]) -> list[torch.Tensor]:
    """counter: four int64 tensors of 32-bit words; key: two words -> four tensors of words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The products wrap as signed 64-bit numbers, whose bits are those of the unsigned ones.
        a, b = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = _high(b) ^ c1 ^ k0, b & WORD, _high(a) ^ c3 ^ k1, a & WORD
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return [c0, c1, c2, c3]


def first_words(seed: int, offset: int, streams: int, device: torch.device) -> torch.Tensor:
    """The first word for every stream 0 .. streams - 1 -> int64 [streams]; seed, offset: 64 bits."""
    stream = torch.arange(streams, device=device)
    zero = torch.zeros_like(stream)
    counter = [stream & WORD, stream >> 32, zero + (offset & WORD), zero + (offset >> 32 & WORD)]
    return philox(counter, (seed & WORD, seed >> 32 & WORD))[0]


def _high(product: torch.Tensor) -> torch.Tensor:
    return product >> 32 & WORD
