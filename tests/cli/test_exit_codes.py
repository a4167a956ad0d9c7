"""Exit codes and what scripts read: one JSON document on stdout, a sentence on stderr.

Of real processes 1, 2 and 4 are here, 130 in tests/job/test_interrupting.py, and 0 in
tests/test_readme.py, where commands run as they are written.
"""

import json
import shutil
import subprocess
import sys

import pytest
from edits import edit_config
from jobs import compress, stage

from compressor.cli.compress import app
from compressor.cli.running import run
from compressor.cli.stages import stages
from compressor.job.interruption import Interrupted

QUICK = ("--method", "magnitude", "--repair", "none", "--samples", 4, "--length", 32)
A_BUG = """
import compressor.analysis.inspection as inspection
from compressor.cli.stages import main
inspection.inspect = lambda folder: {}["widths"]
main()
"""

WITHOUT_MEMORY = """
import resource
from pathlib import Path
import compressor.analysis.inspection as inspection
from compressor.cli.stages import main
held = []
def inspect(folder):
    had = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (had + (1 << 20), resource.RLIM_INFINITY))
    while True:
        held.append(bytes(1 << 8))
inspection.inspect = inspect
main()
"""


def ended(*arguments, code: str = "") -> subprocess.CompletedProcess:
    """A command in a process of its own, as a shell runs it."""
    program = ["-c", code] if code else ["-m", "compressor"]
    command = [sys.executable, *program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done


def told(code: int, out: str, err: str) -> dict:
    """The error's object; stderr has the same sentence."""
    error = json.loads(out)["error"]
    assert error.keys() == {"sentence", "exit_code", "kept"}
    assert error["exit_code"] == code and error["sentence"] in err
    return error


def told_by(done: subprocess.CompletedProcess) -> dict:
    return told(done.returncode, done.stdout, done.stderr)


def test_1_a_bug(llama):
    done = ended("inspect", llama, "--json", code=A_BUG)
    assert done.returncode == 1
    assert told_by(done)["sentence"] == (
        "this is a bug of the program, KeyError: it lacks 'widths'. Run the same again with --debug, "
        "and report what that shows."
    )


def test_2_bad_input(tmp_path):
    done = ended("compress", tmp_path / "no", tmp_path / "out", "--keep", 0.5, "--json")
    assert done.returncode == 2
    assert (
        told_by(done)["sentence"].startswith("There is no folder") and told_by(done)["kept"] is None
    )


def test_3_worse_than_allowed(llama, text_file, tmp_path, capsys):
    # What is drawn at random loses nothing by a cut: it must even gain a tenth.
    texts = ("--calibration", text_file, "--max-perplexity-ratio", 0.9, "--no-verify", "--json")
    assert compress(llama, tmp_path / "out", "--keep", 0.5, *QUICK, *texts) == 3
    out, err = capsys.readouterr()
    assert f"kept as {tmp_path / 'out.rejected'}" in told(3, out, err)["sentence"]
    (result,) = json.loads(out)["results"]
    assert result["perplexity_after"] > 0.9 * result["perplexity_before"]


def test_4_a_full_disk(llama, tmp_path):
    scores = tmp_path / "scores"
    assert stage("score", llama, "--method", "magnitude", "--out", scores) == 0
    done = ended("plan", scores, "--keep", 0.7, "--out", "/dev/full")
    assert done.returncode == 4 and "No space left on device" in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_4_no_memory_and_none_to_say_so():
    done = ended("inspect", "model", code=WITHOUT_MEMORY)
    assert done.returncode == 4 and "Memory ran out: no more could be had." in done.stderr


def test_5_not_what_it_should_be(llama, tmp_path, capsys):
    folder = shutil.copytree(llama, tmp_path / "copy")
    edit_config(folder, intermediate_size=40)
    assert stage("verify", folder) == 5
    assert capsys.readouterr().err.startswith("compressor: ")


@pytest.mark.parametrize("where", ["", "score, after block 2 of 3"])
def test_an_interruption_as_json(llama, tmp_path, monkeypatch, capsys, where):
    stop = Interrupted()
    stop.where, stop.kept = where, "All of it is kept."

    def stopped(*_):
        raise stop

    monkeypatch.setattr("compressor.job.compress.run_job", stopped)
    assert compress(llama, tmp_path / "out", "--keep", 0.5, "--json") == 130
    error = json.loads(capsys.readouterr().out)["error"]
    said = f"interrupted{where and ' in '}{where}."
    assert error == {"sentence": said, "exit_code": 130, "kept": "All of it is kept."}


def test_words_that_the_parser_refuses_as_json(capsys):
    for arguments, sentence in (
        (["--json"], "Missing argument 'source'."),
        (["a", "b", "--json", "--keep", "x"], "Invalid value for '--keep': "),
        (["a", "b", "--json", "--magic"], "No such option: --magic."),
    ):
        assert run(app, arguments) == 2
        assert json.loads(capsys.readouterr().out)["error"]["sentence"].startswith(sentence)


@pytest.mark.parametrize("command", ["compress", "score", "verify", "inspect"])
def test_debug_shows_where_and_changes_no_code(command, tmp_path, capsys):
    given = ["--out", "scores"] if command == "score" else ["out", "--keep", "0.5"]
    given = given if command in ("score", "compress") else []
    arguments = [command, str(tmp_path / "no"), *given]
    assert run(stages, arguments) == 2
    sentence = capsys.readouterr().err
    assert run(stages, [*arguments, "--debug"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and shown.endswith(f"\n{sentence}")
    assert "Traceback" not in sentence
