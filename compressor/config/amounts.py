"""Amounts, ratios and block numbers as people write them: `5.4B`, `11GB`, `off`, `0,1,-1`."""

import math
from collections.abc import Sequence

from compressor.errors import InputError

AUTO = "auto"
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
        amount = float(number) * units[text[len(number) :]]
    except (ValueError, KeyError):
        amount = math.nan
    if math.isnan(amount):
        raise InputError(
            f"{text!r} is not an amount; write a number and one of {', '.join(filter(None, units))}."
        )
    return amount


def parse_bound(text: str) -> tuple[str, float]:
    """`5.4B` as parameters, `11GB` as bytes."""
    if text[-2:] in SIZES or text[-3:] in SIZES:
        return "bytes", parse_amount(text, SIZES)
    return "params", parse_amount(text, COUNTS)


def parse_size(text: str) -> float:
    return parse_amount(text, SIZES)


def parse_blocks(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"--protect takes block numbers such as 0,1,-1, not {text!r}.") from None


def in_runs(blocks: Sequence[int]) -> str:
    """Ascending block numbers as `3, 7-9`."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][-1] == block - 1:
            runs[-1][1:] = [block]
        else:
            runs.append([block])
    return ", ".join("-".join(map(str, run)) for run in runs)


def parse_drop(text: str) -> int | str:
    """A number of blocks, or `auto`."""
    try:
        return text if text == AUTO else int(text)
    except ValueError:
        raise InputError(
            f"--drop-blocks takes a number of blocks, or {AUTO}, not {text!r}."
        ) from None


def parse_ratio(text: str) -> float | None:
    if text == "off":
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--max-perplexity-ratio is a number or off, not {text!r}.") from None


def size(count: float) -> str:
    """`2.50 GB`, `8 MB`, `312 KB`."""
    if count >= 1e8:
        return f"{count / 1e9:.2f} GB"
    return f"{math.ceil(count / 1e6)} MB" if count >= 1e6 else f"{math.ceil(count / 1e3)} KB"
