"""Compress Hugging Face language models into smaller dense checkpoints."""

import os
import sys

__version__ = "0.1.0"

# What is offered, by where it is; imported when it is first asked for, since torch takes seconds.
_OFFERED = {
    "front.stages": ("score", "plan", "cut", "repair", "save"),
    "front.exporting": ("export",),
    "front.jobs": ("compress", "sparsify", "quantise", "recover"),
    "front.looking": ("doctor", "evaluate", "inspect", "verify"),
    "front.models": ("tokens",),
    "scoring.scores": ("Scores",),
    "planning.plan": ("Plan",),
    "errors": ("CompressorError", "InputError"),
}
_PLACES = {name: module for module, names in _OFFERED.items() for name in names}
__all__ = sorted(_PLACES)


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    from importlib import import_module

    offered = globals()[name] = getattr(import_module(f"compressor.{_PLACES[name]}"), name)
    return offered


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_HERE = os.path.dirname(os.path.abspath(__file__))
_BESIDE = os.path.join(os.path.dirname(_HERE), "kernels", "__init__.py")


class _Clone:
    """Finds what an installed package has inside and a clone, in which Python was started, has not:
    `kernels/` lies beside this folder there, and what was compiled lies with the installed package.
    """

    @staticmethod
    def find_spec(name: str, path=None, target=None):
        from importlib.machinery import EXTENSION_SUFFIXES
        from importlib.util import spec_from_file_location

        if name == "compressor.kernels":
            return spec_from_file_location(name, _BESIDE)
        if name == "compressor._C":
            for folder in sys.path:
                for suffix in EXTENSION_SUFFIXES:
                    file = os.path.join(folder, "compressor", f"_C{suffix}")
                    if os.path.isfile(file):
                        return spec_from_file_location(name, file)
        return None


# Asked after all others, an editable installation's own finder among them.
if os.path.isfile(_BESIDE) and not os.path.isdir(os.path.join(_HERE, "kernels")):
    sys.meta_path.append(_Clone)
