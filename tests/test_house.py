"""The house: its wings, from top to bottom, and that imports go in no other direction."""

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "compressor"
# From top to bottom. What lies beside them in the package is a wing of its own.
WINGS = (
    *(
        "__main__",
        "cli",
        "adapters",
        "front",
        "job",
        "analysis",
        "report",
        "verification",
        "evaluation",
    ),
    *("recovery", "sparse", "quantization", "measuring", "repairing", "writing", "cutting"),
    *("planning", "scoring", "solvers", "model", "text", "config", "errors", "kernels", "_C"),
)
FLAT = 6  # files beside the wings, at most


def wing_of(module: str) -> str:
    """`compressor.model.stream` is of `model`; the package itself of none."""
    return module.partition(".")[2].partition(".")[0]


def imported(file: Path) -> Iterator[str]:
    """Every module of this package that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "compressor":
            yield from (f"compressor.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def rising(wings: tuple[str, ...]) -> list[str]:
    """The imports that go up."""
    place = {wing: floor for floor, wing in enumerate(wings)}
    return [
        f"{module_of(file)} imports {name}"
        for file in files()
        for name in imported(file)
        if name.startswith("compressor.")
        and place.get(wing_of(name), 99) < place.get(wing_of(module_of(file)), 0)
    ]


def test_imports_go_down():
    assert rising(WINGS) == []


@pytest.mark.parametrize("pair", [("model", "scoring"), ("writing", "job")])
def test_the_order_is_held(pair):
    """With two wings the other way round, there are imports that go up."""
    swapped = {pair[0]: pair[1], pair[1]: pair[0]}
    assert rising(tuple(swapped.get(wing, wing) for wing in WINGS))


def test_every_folder_is_a_wing():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders - {*WINGS} == set()


def test_few_files_lie_flat():
    assert len([*PACKAGE.glob("*.py")]) <= FLAT


MOST_PARAMETERS = 8  # of a function outside the command line
MOST_READERS = 13  # modules that a job's whole config is handed to


def functions(file: Path) -> Iterator[tuple[str, list[ast.arg]]]:
    """Every function of a file, with its parameters."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            yield node.name, [each for each in every if each.arg not in ("self", "cls")]


def test_functions_take_few_parameters():
    long = [
        f"{module_of(file)}.{name} has {len(parameters)}"
        for file in files()
        if wing_of(module_of(file)) != "cli"
        for name, parameters in functions(file)
        if len(parameters) > MOST_PARAMETERS
    ]
    assert long == []


def test_few_modules_take_the_whole_config():
    readers = {
        module_of(file)
        for file in files()
        if wing_of(module_of(file)) != "cli"
        for _, parameters in functions(file)
        for each in parameters
        if isinstance(each.annotation, ast.Name) and each.annotation.id == "JobConfig"
    }
    assert 0 < len(readers) <= MOST_READERS, sorted(readers)


SCRIPTS = [
    file for folder in ("bench", "docs", "examples") for file in (ROOT / folder).glob("*.py")
]


@pytest.mark.parametrize("script", sorted(SCRIPTS), ids=lambda file: file.stem)
def test_scripts_import_names_that_exist(script):
    """Also those that no test runs."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("compressor"):
            module = import_module(node.module)
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or import_module(f"{node.module}.{name}")
