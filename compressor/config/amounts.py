"""Amounts as people write them: `5.4B`, `11GB`."""

import math

from compressor.errors import InputError

COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
SIZES = {
    "": 1,
    **{f"{p}B": 1000 ** (i + 1) for i, p in enumerate("KMGT")},
    **{f"{p}iB": 1024 ** (i + 1) for i, p in enumerate("KMGT")},
}


def parse_amount(text: str, units: dict[str, int]) -> float:
    """`5.4B` or `11GB` as a number."""
    number = text.rstrip("".join({c for unit in units for c in unit}))
    try:
        found = float(number) * units[text[len(number) :]]
    except (ValueError, KeyError):
        found = math.nan
    if math.isnan(found):
        raise InputError(
            f"{text!r} is not an amount; write a number and one of {', '.join(filter(None, units))}."
        )
    return found


def size(count: int) -> str:
    """`2.50 GB`, `8 MB`, `312 KB`."""
    if count >= 1e8:
        return f"{count / 1e9:.2f} GB"
    return f"{math.ceil(count / 1e6)} MB" if count >= 1e6 else f"{math.ceil(count / 1e3)} KB"
