"""A run from which a test or a backend disappeared fails, as `make test` runs it and in one process."""

import os
import subprocess
import sys
from pathlib import Path

import counting
import pytest
from counting import Counting, Ran, absent_here, complaints

CONFTEST = """
from counting import Counting, add_option as pytest_addoption

def pytest_configure(config):
    config.pluginmanager.register(Counting(config, cuda=False))
"""
OPERATOR = """
import pytest

class OP:
    defaults = {"cuda": "triton"}

@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize(("device", "backend"), [("cpu", "ref"), ("cpu", "ext"), ("cpu", "triton")])
def test_operator(device, backend, number):
    pass

def test_plain():
    pass
"""
OTHER = """
import pytest

def test_one():
    pass

@pytest.mark.slow
def test_slow():
    pass

def test_of_a_real_model():
    pytest.skip("needs ../shared, with a model")
"""
TABLE = """{
  "tests/ops/test_operator.py": {"cpu-ext": 4, "cpu-ref": 4, "cpu-triton": 4, "cuda-ref": 4, \
"cuda-triton": 4, "tests": 1},
  "tests/test_other.py": {"tests": 2}
}
"""


@pytest.fixture
def suite(tmp_path) -> Path:
    """Two files of tests and their table."""
    (tmp_path / "tests/ops").mkdir(parents=True)
    ini = "[pytest]\ntestpaths = tests\nmarkers = slow\naddopts = -p no:cacheprovider\n"
    (tmp_path / "pytest.ini").write_text(ini)
    (tmp_path / "tests/conftest.py").write_text(CONFTEST)
    (tmp_path / "tests/ops/test_operator.py").write_text(OPERATOR)
    (tmp_path / "tests/test_other.py").write_text(OTHER)
    (tmp_path / counting.FILE).write_text(TABLE)
    return tmp_path


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """The exit code and what was printed."""
    environment = os.environ | {"PYTHONPATH": str(Path(counting.__file__).parent)}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a second of imports
    environment.pop("COMPRESSOR_NO_EXTENSION", None)
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout


AS_MAKE_TEST = ("-p", "xdist", "-n", "2", "--dist", "worksteal", "-m", "not slow")


@pytest.mark.parametrize("how", [(), AS_MAKE_TEST], ids=["alone", "two processes"])
def test_all_that_was_there_is_counted(suite, how):
    code, out = run(suite, *how)
    assert code == 0, out
    backends = "cpu-ext 4, cpu-ref 4, cpu-triton 4"
    others = 3 if how else 4
    skips = "skipped: needs ../shared, with a model (1)"
    assert f"cases of operators: {backends}; other tests: {others}; {skips}" in out


@pytest.mark.parametrize("how", [(), AS_MAKE_TEST], ids=["alone", "two processes"])
def test_a_backend_that_disappears_fails_the_run(suite, how):
    without = OPERATOR.replace(', ("cpu", "triton")', "")
    (suite / "tests/ops/test_operator.py").write_text(without)
    code, out = run(suite, *how)
    assert code == 1
    assert "0 cases on cpu-triton ran, at least 4 should have" in out
    assert " failed" not in out


def test_a_test_or_a_file_that_vanishes_fails_the_run(suite):
    (suite / "tests/test_other.py").write_text(OTHER.replace("def test_one", "def one"))
    assert run(suite)[0] == 0  # the slow one counts too
    code, out = run(suite, "-m", "not slow")
    assert code == 1 and "tests/test_other.py: 1 tests ran, at least 2 should have" in out
    (suite / "tests/test_other.py").unlink()
    code, out = run(suite)
    assert code == 1 and "tests/test_other.py: 0 tests ran, at least 2 should have" in out
    assert "`make counts` writes tests/counts.json anew" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("tests/test_other.py",),
        ("tests/ops/test_operator.py::test_plain",),
        ("-k", "plain"),
        ("-m", "slow"),
        ("--ignore", "tests/ops"),
        ("--deselect", "tests/ops/test_operator.py::test_operator"),
    ],
    ids=" ".join,
)
def test_a_part_of_the_suite_is_held_to_that_part(suite, arguments):
    code, out = run(suite, *arguments)
    assert code == 0, out


def test_a_folder_is_held_to_its_files(suite):
    (suite / "tests/ops/test_operator.py").write_text("def test_plain():\n    pass\n")
    code, out = run(suite, "tests/ops")
    assert code == 1 and "0 cases on cpu-ref ran, at least 4 should have" in out
    assert "test_other" not in out
    assert run(suite, "tests/test_other.py")[0] == 0


def test_a_run_that_was_stopped_is_not_held_to_the_rest(suite):
    text = OTHER.replace("def test_one():\n    pass", "def test_one():\n    assert 0")
    (suite / "tests/test_other.py").write_text(text)
    code, out = run(suite, "-x", "tests/test_other.py", "tests/ops")
    assert code == 1 and "should have" not in out


SKIPS = [
    "def test_skipped():\n    pytest.skip('no time')",
    "@pytest.mark.skip(reason='no will')\ndef test_skipped():\n    pass",
    "pytest.skip('no mood', allow_module_level=True)",
    "pytest.importorskip('no_package')",
]


@pytest.mark.parametrize("how", [(), AS_MAKE_TEST], ids=["alone", "two processes"])
def test_a_skip_for_another_reason_fails_the_run(suite, how):
    for number, skip in enumerate(SKIPS):
        (suite / f"tests/test_skips_{number}.py").write_text(f"import pytest\n\n{skip}\n")
    code, out = run(suite, *how)
    assert code == 1, out
    for reason in ("no time", "no will", "no mood", "could not import 'no_package'"):
        assert f"FAILED 1 skipped for a reason that is not in tests/counting.py: {reason}" in out


def test_a_file_that_is_not_counted_yet_is_named(suite):
    (suite / "tests/test_new.py").write_text("def test_it():\n    pass\n")
    code, out = run(suite)
    assert code == 0 and "Not counted before `make counts` is run: tests/test_new.py" in out


def test_the_table_is_written_from_what_is_collected(suite):
    (suite / counting.FILE).write_text("{}")
    code, out = run(suite, "--collect-only", "--write-counts", "-m", "not slow")
    assert code == 0, out
    assert (suite / counting.FILE).read_text() == TABLE


def test_what_a_machine_or_an_installation_cannot_run():
    cuda = {"cuda-ref", "cuda-triton", "cuda-ext"}
    assert absent_here(False, "linux", {}) == cuda
    assert absent_here(True, "linux", {}) == {"cpu-triton", "cpu-emulated"}
    assert absent_here(False, "darwin", {}) == cuda | {"cpu-triton", "cpu-emulated"}
    without = {"COMPRESSOR_NO_EXTENSION": "1"}
    absent = {"cpu-triton", "cpu-ext", "cuda-ext", "cpu-emulated"}
    assert absent_here(True, "linux", without) == absent
    assert absent_here(False, "linux", {"CXX": "no-compiler"}) == cuda | {"cpu-emulated"}
    ran = Ran()
    for _ in range(3):
        ran.add("a", "cpu-ref")
    least = {"a": {"cpu-ref": 3, "cpu-ext": 3}}
    assert complaints(ran, least, {"cpu-ext"}) == []
    sentence = "a: 0 cases on cpu-ext ran, at least 3 should have"
    assert complaints(ran, least, set()) == [sentence]
    assert complaints(ran, least, set(), {"cpu-ext": "no compiler"}.get) == [
        f"{sentence} (no compiler)"
    ]


def test_a_backend_whose_cases_are_skipped_did_not_run():
    ran = Ran()
    ran.add("a", "cpu-ext", "needs nvcc")
    ran.add("a", "tests", "needs a GPU")
    wrong = complaints(ran, {"a": {"cpu-ext": 1, "tests": 1}}, set())
    assert wrong == ["a: 0 cases on cpu-ext ran, at least 1 should have"]


def test_this_suite_is_counted(request):
    assert any(isinstance(p, Counting) for p in request.config.pluginmanager.get_plugins())
