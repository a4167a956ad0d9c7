"""Scores: one number a unit, by any of the methods."""

from compressor.errors import InputError
from compressor.scoring.methods import METHODS, Method

__all__ = ["METHODS", "Method", "register_method"]


def register_method(method: Method) -> None:
    """Have a method of one's own be known by its name, as `scoring/methods/__init__.py` describes them.

    InputError for a name that another method has.
    """
    if METHODS.get(method.name, method) is not method:
        raise InputError(f"There is a method {method.name!r} already; give yours another name.")
    METHODS[method.name] = method
