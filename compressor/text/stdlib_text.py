"""Text that every machine with Python already has: the sources of its standard library.

Two splits by module name, so that text a model was tuned on is never the text it is judged by:
`train` is everything but the modules named in `held_out_modules.txt`, `held-out` is those.
The list is fixed and committed because the library differs between Python versions.
"""

import os
import sysconfig
from importlib import resources
from pathlib import Path

# Generated tables (code pages, help topics) say nothing about language, and test suites are not
# installed everywhere: a Debian python has neither.
SKIPPED_FOLDERS = {
    "__pycache__",
    "_bundled",
    "dist-packages",
    "encodings",
    "idle_test",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}

SPLITS = ("train", "held-out")


def held_out_modules() -> set[str]:
    """The dotted names of the modules kept for evaluation."""
    text = resources.files("compressor").joinpath("held_out_modules.txt").read_text()
    return {line for line in text.split() if line}


def stdlib_modules(root: Path | None = None) -> dict[str, Path]:
    """Dotted module name -> source file, sorted by name, for the running Python."""
    root = Path(root or sysconfig.get_paths()["stdlib"])
    modules = {}
    for folder, below, files in os.walk(root):
        # In place: what is installed there may be a hundred times the library.
        below[:] = [b for b in below if b not in SKIPPED_FOLDERS and not b.startswith("config-")]
        for path in (Path(folder, name) for name in files if name.endswith(".py")):
            parts = path.relative_to(root).with_suffix("").parts
            modules[".".join(parts).removesuffix(".__init__")] = path
    return dict(sorted(modules.items()))


def stdlib_documents(split: str) -> list[str]:
    """One string a module of the split `train` or `held-out`, in order of name."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; the standard library has {' and '.join(SPLITS)}.")
    held_out = held_out_modules()
    documents = []
    for name, path in stdlib_modules().items():
        if (name in held_out) == (split == "held-out"):
            text = path.read_text(encoding="utf-8", errors="ignore").strip()
            if text:
                documents.append(text + "\n")
    return documents
