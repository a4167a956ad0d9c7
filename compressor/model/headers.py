"""The header of a safetensors file, checked before anything is made of it.

What Python's JSON takes and the library does not (NaN, other encodings, a key twice), what overflows,
and what lies in the same place as another tensor is refused here, in a sentence, so that all that read
the file later read the same.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from compressor.errors import NOT_JSON, InputError

METADATA = "__metadata__"
FIELDS = {"dtype", "shape", "data_offsets"}
LARGEST = 1 << 63  # of numbers, as the tensors' own sizes are signed
MOST_AXES = 64  # of torch


def parsed_header(file: Path, content: bytes) -> dict[str, dict]:
    """The entries of all tensors, whose dtype is a name, and shape and offsets whole numbers."""
    try:
        header = json.loads(
            content.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse_constant
        )
        "".join(header if isinstance(header, dict) else "").encode()  # no half of a character
    except NOT_JSON as error:
        raise InputError(f"{file} is not a safetensors file: {error}.") from error
    if not isinstance(header, dict):
        raise InputError(f"{file} is not a safetensors file: its header is no JSON object.")
    told = header.pop(METADATA, None) or {}
    if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
        raise InputError(f"{file} is damaged: its {METADATA} is no object of strings.")
    for name, entry in header.items():
        if not placed(entry):
            raise InputError(f"{file} is damaged: its header does not place {name}.")
    return header


def once(pairs: list[tuple[str, object]]) -> dict:
    """An object whose keys are all different."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twice} is in its header twice")
    return found


def refuse_constant(name: str):
    raise ValueError(f"{name} is no number of JSON")


def placed(entry: object) -> bool:
    """Whether an entry says what and where a tensor is, in the types that the library takes."""
    if not isinstance(entry, dict) or entry.keys() != FIELDS or not isinstance(entry["dtype"], str):
        return False
    shape, place = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(place, list):
        return False
    return (
        len(place) == 2 and len(shape) <= MOST_AXES and all(type(n) is int for n in shape + place)
    )


def checked_length(file: Path, header: Mapping[str, dict]) -> int:
    """Bytes of all tensors, which have to lie one behind the other, each as long as its shape says."""
    spans = {}
    for name, entry in header.items():
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        sizes = [n for n in shape if n]  # so that no zero hides an overflow
        whole = all(0 <= n < LARGEST for n in (begin, end, *shape)) and math.prod(sizes) < LARGEST
        bits = re.search(r"\d+", entry["dtype"])
        if not whole or (bits and 8 * (end - begin) != int(bits[0][:9]) * math.prod(shape)):
            raise InputError(
                f"{file} is damaged: {name} of shape {entry['shape']} is not what {end - begin} bytes "
                "hold; download it again."
            )
        spans[name] = begin, end
    place = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != place or end < begin:
            raise InputError(
                f"{file} is damaged: {name} begins at byte {begin} of the data and not at {place}; "
                "download it again."
            )
        place = end
    return place
