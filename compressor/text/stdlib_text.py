"""Text that every machine with Python already has: the sources of its standard library, and their prose.

The prose is what stands in the docstrings, and the help topics where they are installed: English of
manuals, for models of language rather than code.

Two splits by module name, so that text a model was tuned on is never the text it is judged by:
`train` is everything but the modules named in `held_out_modules.txt`, `held-out` is those.
The list is fixed and committed because the library differs between Python versions.
"""

import ast
import os
import sysconfig
from collections.abc import Iterator
from functools import cache
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
STATEMENTS = (ast.stmt, ast.ExceptHandler, ast.match_case)
PROSE = 200  # characters: shorter docstrings say what a name says


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
    texts = (text.strip() for text in sources(split))
    return [text + "\n" for text in texts if text]


def stdlib_prose(split: str) -> list[str]:
    """The docstrings of a module as one string, for every module of the split that has such; behind
    those of `train` the help topics.
    """
    return [*prose(split)]


@cache
def prose(split: str) -> tuple[str, ...]:
    """The same; to parse the library takes seconds, and a process may run several jobs."""
    documents = ["\n\n".join(docstrings(text)) + "\n" for text in sources(split)]
    if split == "train":
        documents += help_topics()
    return tuple(text for text in documents if text.strip())


def sources(split: str) -> Iterator[str]:
    """The source of every module of a split, in order of name."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; the standard library has {' and '.join(SPLITS)}.")
    held_out = held_out_modules()
    for name, path in stdlib_modules().items():
        if (name in held_out) == (split == "held-out"):
            yield path.read_text(encoding="utf-8", errors="ignore")


def docstrings(source: str) -> Iterator[str]:
    """Those of a module that are long enough to be prose; none of what this Python cannot parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            if len(text) >= PROSE:
                yield text


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """A module and its statements, level by level: `ast.walk` without the expressions, which hold no
    docstring and are most of it.
    """
    level: list[ast.AST] = [tree]
    while level:
        yield from level
        below = (child for node in level for child in ast.iter_child_nodes(node))
        level = [child for child in below if isinstance(child, STATEMENTS)]


def help_topics() -> list[str]:
    """What `help("...")` prints, in order of topic; a Debian python may be without."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    return [text.strip() + "\n" for _, text in sorted(topics.items())]
