"""The end of a calibration text, set aside to measure results on: it fits and chooses nothing."""

from dataclasses import replace

from compressor.text.texts import Text

LEAST = 8  # sequences
SHARE = 8  # the calibration has so many times as many
PART = 4  # of a text that is too short for both, at most every so-many-th part
CHARACTERS = 4  # of a token, about


def set_aside(text: Text, tokenizer, length: int, calibrating: int) -> tuple[Text, Text | None]:
    """A text without its end, and that end, which has an eighth as many sequences as calibrate.

    length: tokens of a sequence at most; calibrating: how many sequences the calibration wants. The end
    has at least `LEAST` sequences, and fewer only where the text does: of one that is too short for
    both it is at most a quarter, and nothing (None) of less than four documents or windows. What is
    left keeps its places: a range A:B of documents or windows selects what it did, as far as it is left.
    """
    wanted = max(LEAST, calibrating // SHARE)
    if text.kind == "documents":
        return _documents(text, wanted * length * CHARACTERS, calibrating)
    return _windows(text, tokenizer, length, wanted, calibrating)


def _documents(text: Text, characters: int, calibrating: int) -> tuple[Text, Text | None]:
    places = [i for i, string in enumerate(text.strings) if string.strip()]
    most = max(len(places) // PART, len(places) - calibrating)
    taken, size = 0, 0
    for place in reversed(places):
        if taken == most or (taken >= LEAST and size >= characters):
            break
        taken, size = taken + 1, size + len(text.strings[place])
    if not taken:
        return text, None
    first = places[-taken]
    blank = [""] * (len(text.strings) - first)  # so that a range of documents means what it did
    named = f"documents {first} to {len(text.strings) - 1}"
    return (
        replace(text, strings=text.strings[:first] + blank, part=f"all but {named}"),
        replace(text, strings=text.strings[first:], part=named),
    )


def _windows(
    text: Text, tokenizer, length: int, wanted: int, calibrating: int
) -> tuple[Text, Text | None]:
    total = sum(map(len, text.strings))
    end = "".join(_split(text.strings, total - 4 * CHARACTERS * wanted * length)[1])
    tokens = len(tokenizer(end, add_special_tokens=False, verbose=False)["input_ids"])
    window = length * len(end) / max(1, tokens)  # its characters
    if total < PART * window or not tokens:
        return text, None
    most = max(total // PART, total - round((calibrating + 0.5) * window))
    before, after = _split(text.strings, total - min(most, round((wanted + 0.5) * window)))
    place = f"character {sum(map(len, before)):,}"
    return (
        replace(text, strings=before, part=f"up to {place}"),
        replace(text, strings=after, part=f"from {place} on"),
    )


def _split(strings: list[str], place: int) -> tuple[list[str], list[str]]:
    """The strings before so many characters, and those after them."""
    before: list[str] = []
    for i, string in enumerate(strings):
        if place < len(string):
            place = max(0, place)
            return [*before, string[:place]], [string[place:], *strings[i + 1 :]]
        place -= len(string)
        before.append(string)
    return before, []
