"""Files as nobody should have made them: sound ones with one to three things wrong.

`spoiled` takes its choices from a `Random`, so that hypothesis makes them in the tests, and shrinks
them, and a search over coverage in `make fuzz`.
"""

import json
import struct
from random import Random

DEEP = "[" * 100_000 + "]" * 100_000
NUMBERS = (
    *(0, 1, -1, 2, 3, 0.5, -0.0, 1e-320, 1e308, 255, 2**31, 2**32 - 1, 2**53 + 1, 2**63 - 1),
    *(
        2**63,
        2**64,
        -(2**63),
        10**12,
        10**30,
        float("nan"),
        float("inf"),
        float("-inf"),
        True,
        False,
    ),
)
STRINGS = (
    *("", "a", "A", "0", "-1", "1e9", "NaN", "None", "auto", "true", "\x00", "\x1b[2J", "\n"),
    *("a\r\nb", "\ud800", "\U0001f600", "\u202e", "x" * 5000, ".", "..", "../a.safetensors"),
    *("/etc/passwd", "a/../../b", "file:///etc/passwd", "a.bin", "model.safetensors"),
    *("modeling.py--A.B", "{0.__class__}", "F32", "BF16", "F16", "U8", "I64", "F8_E4M3", "F4"),
    *("BOOL", "C64", "float32", "[/red]", "{{ 1/0 }}"),
)
RAW = (
    DEEP,
    "1" * 5000,
    "-" + "9" * 4000,
    "1e99999",
    "-0",
    "[1,]",
    "'a'",
    "nul",
    "\x00",
    "",
    "{}{}",
)
WORDS = (
    *(b"[", b"]", b"{", b"}", b'"', b":", b",", b"\\", b"\n", b"\x00", b"\xff", b"\xed\xa0\x80"),
    *(b"-", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc0\x80", b"\\ud800", b"NaN", b"Infinity", b"1e999"),
    *(b"null", b"true", b"__metadata__", b"data_offsets", b"!!python/object:os.system", b"*a"),
    *(b"&a [*a]", b"<<: ", b"? ", b"- ", b"%YAML 9.9\n", b"---\n", b"2020-99-99", b"0x", b"0b"),
    *(b"1:60", b"=", b"~", b"!!binary"),
)
LENGTHS = (0, 1, 2**63, 2**64 - 1, 10**8 + 1, 10**10)  # that a header may be said to have


class Pairs(list):
    """An object as its pairs, of which several can have one key."""


class Raw(str):
    """What stands in the file as it is, whether or not that is JSON."""


def spoiled(data: bytes, random: Random, header: bool = False) -> bytes:
    """The content of a file with something wrong. header: whether it is safetensors."""
    for _ in range(random.randint(1, 3)):
        if header:
            data = spoiled_header(data, random)
        elif random.random() < 0.25 or (value := parsed(data)) is None:
            data = spoiled_bytes(data, random)
        else:
            data = written(changed(value, random)).encode("utf-8", "surrogatepass")
    return data


def spoiled_header(data: bytes, random: Random) -> bytes:
    """The JSON of a safetensors file, how long it is said to be, or what lies behind it."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data):
        return spoiled_bytes(data, random)
    head, rest = data[8 : 8 + length], data[8 + length :]
    kind = random.randrange(6)
    if kind == 0:
        said = random.choice((*LENGTHS, max(0, len(data) - 8), length + 1))
        return struct.pack("<Q", said) + data[8:]
    if kind == 1:
        rest = random.choice((b"", rest[:-1], rest + b"\0", rest * 3))
    elif (value := parsed(head)) is None or kind == 2:
        head = spoiled_bytes(head, random)
    else:
        head = written(changed(value, random)).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(head)) + head + rest


def parsed(data: bytes):
    """The JSON, objects as `Pairs`; None where it is none, or nested too deeply to be worth it."""
    try:
        return json.loads(data, object_pairs_hook=Pairs) if len(data) < 20_000 else None
    except (ValueError, RecursionError):
        return None


def written(value) -> str:
    if isinstance(value, Raw):
        return value
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {written(each)}" for key, each in value) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


def changed(value, random: Random):
    """The value with another in the place of one that is in it, or of the whole."""
    inside = isinstance(value, Pairs | list) and len(value) > 0
    if not inside or random.random() < 0.15:
        return another(value, random)
    place = random.randrange(len(value))
    if isinstance(value, Pairs):
        key, inner = value[place]
        kind = random.randrange(12)
        if kind == 0:
            pairs = [*value[:place], *value[place + 1 :]]
        elif kind == 1:
            pairs = [*value, (key, another(inner, random))]  # the same key again
        elif kind == 2:
            pairs = [*value, (random.choice(STRINGS), another(inner, random))]
        elif kind == 3:
            pairs = [*value[:place], (random.choice(STRINGS), inner), *value[place + 1 :]]
        else:
            pairs = [*value[:place], (key, changed(inner, random)), *value[place + 1 :]]
        return Pairs(pairs)
    if random.random() < 0.2:
        return value[:place] + value[place + 1 :] * random.randint(0, 3)
    return [*value[:place], changed(value[place], random), *value[place + 1 :]]


def another(value, random: Random):
    """Something that is not meant in this place, or nearly what is."""
    kind = random.randrange(7)
    if kind == 0:
        return random.choice(STRINGS)
    if kind == 1:
        return Raw(random.choice(RAW))
    if kind == 2:
        return random.choice((None, [], Pairs(), [value] * random.choice((1, 2, 300))))
    if kind == 3:
        return Pairs([(random.choice(STRINGS), value)])
    if kind == 4 and isinstance(value, int | float):
        return value + random.choice((-1, 1)) if value == value else value
    return random.choice(NUMBERS)


def spoiled_bytes(data: bytes, random: Random) -> bytes:
    """Bytes taken out, put in, changed, or there twice."""
    place = random.randint(0, len(data))
    end = min(len(data), place + random.choice((1, 2, 8, 64)))
    kind = random.randrange(5)
    if kind == 0:
        return data[:place] + data[end:]
    if kind == 1:
        return data[:place]
    if kind == 2:
        return data[:end] + data[place:end] * random.choice((1, 2, 100)) + data[end:]
    if kind == 3 and data:
        flipped = data[place % len(data)] ^ (1 << random.randrange(8))
        return data[: place % len(data)] + bytes([flipped]) + data[place % len(data) + 1 :]
    return data[:place] + random.choice(WORDS) + data[place:]
