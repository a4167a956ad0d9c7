"""The first tokens of long strings, without encoding all of them.

A string of which 255 tokens are wanted may have millions. What is encoded of it ends at a space some
way behind those, because where a text ends changes its last tokens and not the ones before.
"""

ROOMY = 16  # characters for a token in an excerpt: several times what texts have
LEAST = 4096  # characters; some tokenizers take a word of over 100 as one that is not known
MARGIN = 32  # tokens at the end of an excerpt that a longer one may have otherwise
GROWTH = 4


def encode_openings(tokenizer, strings: list[str], wanted: int, **options) -> dict[str, list]:
    """What the tokenizer gives for strings without special tokens, of which so many tokens are wanted.

    Those that come first are the same as of the whole strings; what follows them may be missing.
    `input_ids` and what `options` ask for, a list each.
    """
    characters = max(LEAST, ROOMY * wanted)
    columns: dict[str, list] = {}
    pending = range(len(strings))
    while pending:
        parts = [opening(strings[i], characters) for i in pending]
        encoded = tokenizer(parts, add_special_tokens=False, verbose=False, **options)
        for key, values in encoded.items():
            column = columns.setdefault(key, [None] * len(strings))
            for i, value in zip(pending, values, strict=True):
                column[i] = value
        pending = [
            i
            for i, part in zip(pending, parts, strict=True)
            if len(part) < len(strings[i]) and len(columns["input_ids"][i]) < wanted + MARGIN
        ]
        characters *= GROWTH
    return columns


def opening(string: str, characters: int) -> str:
    """The string's first characters, up to a space if there is one in the second half of them."""
    if len(string) <= characters:
        return string
    begin = characters // 2
    space = max(string.rfind(mark, begin, characters) for mark in (" ", "\n"))
    return string[: space if space > 0 else characters]
