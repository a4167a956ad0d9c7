"""An interrupted job with recovery goes on, as the same job."""

import os
import signal
import subprocess
import sys
import time

import pytest
from jobs import compress, detailed, left_over, said, same_files

from compressor.recovery import training


def test_an_interrupted_job_is_resumed(
    llama, options, tmp_path, dies_after_a_save, monkeypatch, capsys
):
    """Nothing that was done is done again, and the end is the same, of two ratios."""
    import compressor.job.score_units

    targets = ["--keep", 0.8, 0.7]
    assert compress(llama, tmp_path / "dest", *targets, *options) == 130
    assert left_over(tmp_path / "dest") == ["dest.partial", "dest.work"]
    assert compress(llama, tmp_path / "whole", *targets, *options) == 0
    begun, real = [], training.restore

    def restore(path, *arguments):
        history = real(path, *arguments)
        begun.append((path.name, history and len(history.losses)))
        return history

    with monkeypatch.context() as patched:
        patched.setattr(training, "restore", restore)
        patched.setattr(compressor.job.score_units, "score", None)
        assert compress(llama, tmp_path / "dest", *targets, *options, "--resume") == 0
    assert begun == [("keep-0.8.training.safetensors", 4), ("keep-0.7.training.safetensors", None)]
    assert left_over(tmp_path / "dest") == ["dest"]
    for name in ("keep-0.8", "keep-0.7"):
        assert same_files(tmp_path / "dest" / name, tmp_path / "whole" / name)
    assert compress(llama, tmp_path / "other", *targets, *options, "--resume") == 2
    assert "nothing to resume" in said(capsys)


@pytest.mark.parametrize("moment", ["verdict", "adopt", "conclude", "publish_results"])
def test_an_interruption_after_the_training_is_resumed(
    llama, options, whole, tmp_path, monkeypatch, moment
):
    import compressor.job.compress
    import compressor.job.recover

    def stop(*_, **__):
        raise KeyboardInterrupt

    module = compressor.job.recover if moment == "verdict" else compressor.job.compress
    expected = whole(llama, "--keep", 0.7, *options)
    with monkeypatch.context() as patched:
        patched.setattr(module, moment, stop)
        assert compress(llama, tmp_path / "dest", "--keep", 0.7, *options) == 130
    assert compress(llama, tmp_path / "dest", "--keep", 0.7, *options, "--resume") == 0
    assert same_files(tmp_path / "dest", expected)
    assert left_over(tmp_path / "dest") == ["dest"]


def test_a_killed_job_is_resumed(llama, options, tmp_path):
    """SIGKILL, as soon as a state was saved."""
    options = [str(o) for o in [*options, "--recover-steps", 90, "--recover-save-every", 5]]
    command = [sys.executable, "-m", "compressor", "compress", str(llama), str(tmp_path / "dest")]
    given = detailed(options, tmp_path)
    with subprocess.Popen([*command, "--keep", "0.7", *given], env=os.environ) as process:
        state = tmp_path / "dest.work" / "keep-0.7.training.safetensors"
        while not state.exists() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "dest").exists()
    assert compress(llama, tmp_path / "dest", "--keep", 0.7, *options, "--resume") == 0
    assert compress(llama, tmp_path / "whole", "--keep", 0.7, *options) == 0
    assert same_files(tmp_path / "dest", tmp_path / "whole")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--recover-steps", 8], "had recover_steps 6, and this one has 8"),
        (["--recover", "distill"], "had --recover lora, and this one has distill"),
        (["--keep", 0.6], "had the targets keep-0.7, and this one has keep-0.7 keep-0.6"),
        (["--seed", 1], "had --seed 0, and this one has 1"),
    ],
)
def test_a_resumed_job_is_the_same_job(
    llama, options, tmp_path, capsys, dies_after_a_save, changed, message
):
    dest = tmp_path / "dest"
    assert compress(llama, dest, "--keep", 0.7, *options) == 130
    assert compress(llama, dest, "--keep", 0.7, *options, *changed, "--resume") == 2
    assert message in said(capsys)
    assert left_over(dest) == ["dest.partial", "dest.work"]
    assert compress(llama, dest, "--keep", 0.7, *options, "--resume") == 0


def test_another_text_is_another_job(llama, options, tmp_path, capsys, dies_after_a_save):
    text = tmp_path / "own.txt"
    text.write_text("A text of its own to train on, and some more of it.\n" * 20)
    options = ["--keep", 0.7, *options, "--recover-data", text]
    assert compress(llama, tmp_path / "dest", *options) == 130
    text.write_text("Something else now, which is not what it was at all.\n" * 20)
    assert compress(llama, tmp_path / "dest", *options, "--resume") == 2
    assert "SHA-256 of the text to train on" in said(capsys)


def test_a_work_folder_of_the_users(llama, options, tmp_path, dies_after_a_save):
    (tmp_path / "work").mkdir()
    options = ["--keep", 0.7, *options, "--work-dir", tmp_path / "work"]
    assert compress(llama, tmp_path / "dest", *options) == 130
    assert compress(llama, tmp_path / "dest", *options, "--resume") == 0
    assert list((tmp_path / "work").iterdir()) == []
