"""Random numbers of one seed, for every block (or batch) its own."""

STRIDE = 100_003  # blocks of one seed share no stream with blocks of the next


def of_block(seed: int, block: int) -> int:
    return seed * STRIDE + block
