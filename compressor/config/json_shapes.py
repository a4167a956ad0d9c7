"""Of which form a JSON value has to be, where others than this package may have written it."""

from collections.abc import Mapping

WORDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    bool: "true or false",
}


def misfit(value, shape, where: str = "it") -> str:
    """What of a JSON value is of another form, as half a sentence; nothing where it fits.

    A shape is a type, a list of one shape, which all entries have, or an object of shapes by key. Keys
    that it does not name may be there, and each that it names may be absent or null.
    """
    if isinstance(shape, type):
        fits = type(value) is shape or (shape is float and type(value) is int)
        return "" if fits else f"{where} is {value!r:.60} and not {WORDS.get(shape, 'a number')}"
    kind = type(shape)
    if not isinstance(value, kind):
        return f"{where} is {value!r:.60} and not {WORDS[kind]}"
    if isinstance(shape, Mapping):
        parts = [(value[key], inner, f"`{key}`") for key, inner in shape.items() if key in value]
        parts = [(part, inner, name) for part, inner, name in parts if part is not None]
    else:
        parts = [(part, shape[0], f"an entry of {where}") for part in value]
    return next((wrong for part in parts if (wrong := misfit(*part))), "")
