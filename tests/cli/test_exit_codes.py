"""Exit codes and what scripts read, of real commands: one JSON document on stdout, a sentence on stderr.

130 is that of tests/job/test_interrupting.py, 0 of what is compressed and verified of
tests/test_readme.py.
"""

import json
import shutil
import subprocess
import sys

import pytest
from edits import edit_config
from jobs import compress

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


def ended(*arguments, code: str = "") -> subprocess.CompletedProcess:
    """A command in a process of its own, as a shell runs it."""
    program = ["-c", code] if code else ["-m", "compressor"]
    command = [sys.executable, *program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done


def told(done: subprocess.CompletedProcess) -> dict:
    """The error's object; that stderr has the same sentence."""
    error = json.loads(done.stdout)["error"]
    assert error.keys() == {"sentence", "exit_code", "kept"}
    assert error["exit_code"] == done.returncode and error["sentence"] in done.stderr
    return error


def test_0_done(llama):
    done = ended("estimate", llama, "--json")
    assert (done.returncode, done.stderr) == (0, "") and json.loads(done.stdout)["parameters"]


def test_1_a_bug(llama):
    done = ended("inspect", llama, "--json", code=A_BUG)
    assert done.returncode == 1
    assert told(done)["sentence"] == (
        "this is a bug of the program, KeyError: it lacks 'widths'. Run the same again with --debug, "
        "and report what that shows."
    )


def test_2_bad_input(tmp_path):
    done = ended("compress", tmp_path / "no", tmp_path / "out", "--keep", 0.5, "--json")
    assert done.returncode == 2
    assert told(done)["sentence"].startswith("There is no folder") and told(done)["kept"] is None


def test_3_worse_than_allowed(llama, text_file, tmp_path):
    texts = ("--calibration", text_file, "--max-perplexity-ratio", 1.0001, "--no-verify", "--json")
    done = ended("compress", llama, tmp_path / "out", "--keep", 0.5, *QUICK, *texts)
    assert done.returncode == 3
    assert f"kept as {tmp_path / 'out.rejected'}" in told(done)["sentence"]
    (result,) = json.loads(done.stdout)["results"]
    assert result["perplexity_after"] > result["perplexity_before"]


def test_4_a_full_disk(llama, tmp_path):
    scores = tmp_path / "scores"
    assert run(stages, ["score", str(llama), "--method", "magnitude", "--out", str(scores)]) == 0
    done = ended("plan", scores, "--keep", 0.7, "--out", "/dev/full")
    assert done.returncode == 4 and "No space left on device" in done.stderr


def test_5_not_what_it_should_be(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "copy")
    edit_config(folder, intermediate_size=40)
    done = ended("verify", folder)
    assert done.returncode == 5 and done.stderr.startswith("compressor: ")


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
