"""One process at a time makes a folder or a file."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest
from jobs import compress, said, stage

from compressor.errors import InputError, MachineError
from compressor.writing.locking import END, locked

HOLDING = """
import sys, time
from pathlib import Path
from compressor.writing.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def lock(out):
    """The file of its lock."""
    return out.with_name(out.name + END)


def refused(out) -> str:
    with pytest.raises(InputError) as caught, locked(out):
        pass
    return str(caught.value)


def test_a_second_one_is_refused_by_name(out, lock):
    with locked(out):
        told = refused(out)
        assert told.startswith(f"{out} is being made by another process (process {os.getpid()} on ")
        assert told.endswith("); wait for it, or choose another name.")
        with locked(out.with_name("other")):
            pass
    assert not lock.exists()
    with locked(out):
        pass


def test_by_whatever_path_it_is_named(out, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with locked(out):
        assert "by another process" in refused(tmp_path / "link" / "out")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_one_held_is_free(out, lock, number):
    command = [sys.executable, "-c", HOLDING, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert f"(process {process.pid} on " in refused(out)
        process.send_signal(number)
    assert lock.exists()
    with locked(out):
        pass
    assert not lock.exists()


def test_a_failure_frees_it(out, lock):
    with pytest.raises(KeyError), locked(out):
        raise KeyError
    assert not lock.exists()


def test_a_lock_that_is_removed_while_it_is_waited_for_is_none(out, lock, monkeypatch):
    """The one before ends between the opening of its file and the lock on it."""
    flock, calls = fcntl.flock, []

    def slowly(handle, how):
        calls.append(handle)
        if len(calls) == 1:
            lock.unlink()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", slowly)
    with locked(out):
        assert len(calls) == 2 and "by another process" in refused(out)


def test_a_file_system_without_locks_is_named(out, tmp_path, monkeypatch):
    def without(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.raises(MachineError, match=f"file system of {tmp_path} has no locks"), locked(out):
        pass


def test_a_link_at_the_place_of_the_lock_is_not_followed(out, lock, tmp_path):
    (tmp_path / "precious").write_text("of somebody else")
    lock.symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), locked(out):
        pass
    assert (tmp_path / "precious").read_text() == "of somebody else"


@pytest.mark.parametrize("work", [[], ["--work-dir", "elsewhere"]], ids=["", "another work folder"])
def test_a_job_is_refused_where_another_makes_its_dest(llama, quick, out, lock, capsys, work):
    work = [str(out.with_name(w)) if w == "elsewhere" else w for w in work]
    with locked(out):
        assert compress(llama, out, "--keep", 0.7, *quick, *work) == 2
        assert compress(llama, out, "--keep", 0.7, *quick, *work, "--resume") == 2
        assert said(capsys).count("is being made by another process") == 2
        assert lock.exists() and not out.with_name("out.work").exists()


def test_so_are_the_stages(llama, tmp_path, capsys):
    for name, out, *options in (
        ("score", "scores", "--out"),
        ("export", "small.gguf"),
        ("generate", "own.jsonl"),
        ("recover", "recovered"),
    ):
        with locked(tmp_path / out):
            assert stage(name, llama, *options, tmp_path / out) == 2, name
        assert "is being made by another process" in said(capsys), name
