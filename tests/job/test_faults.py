"""What happens around a job while it runs: a source that changes, a clock that jumps, folders that come
to be, work that another version left. `make torture` has the calls of the system that fail.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from edits import edit_tensors
from jobs import compress, left_over, said, same_files
from safetensors import SafetensorError

from compressor.errors import InputError, MachineError, VerificationError, as_error
from compressor.job import journal, keeping, publishing
from compressor.job.journal import Journal
from compressor.model import saved_blocks
from compressor.model.checkpoint import Checkpoint
from compressor.model.saved_blocks import finished_block
from compressor.verification import verify

WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """It takes as long as all the rest."""
    monkeypatch.setattr("compressor.job.result.draw", lambda *_: None)


@pytest.fixture
def source(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "source")


@pytest.fixture
def asked(text_file):
    text = ["--calibration", text_file, "--length", 32, "--samples", 4, "--evaluation", "none"]
    return ["--keep", 0.7, "--method", "wanda-sp", *text, "--repair", "none", "--no-verify"]


@pytest.fixture
def after_block(monkeypatch):
    """The function that has something done after the first block of a pass, once."""

    def have(done, folder: str = "score") -> None:
        save, saved = saved_blocks.save_file, []

        def saving(tensors, path, *given):
            save(tensors, path, *given)
            if path.parent.name == folder and not saved:
                saved.append(path)
                done()

        monkeypatch.setattr(saved_blocks, "save_file", saving)

    return have


@pytest.fixture
def begun(llama, asked, tmp_path, after_block):
    """The DEST of a job that was interrupted."""

    def interrupt():
        raise KeyboardInterrupt

    after_block(interrupt, "select")
    dest = tmp_path / "begun"
    assert compress(llama, dest, *asked, "--select", "obs") == 130
    return dest


# -- the source ---------------------------------------------------------------------------------------


def test_a_source_that_vanishes(source, llama, asked, whole, tmp_path, capsys, after_block):
    dest, weights = tmp_path / "out", source / WEIGHTS
    after_block(lambda: weights.rename(tmp_path / "away"))
    assert compress(source, dest, *asked) == 4
    told = said(capsys)
    assert "The system refused: [Errno 2] No such file" in told and WEIGHTS in told
    assert "add --resume to go on" in told and left_over(dest) == ["out.work"]
    (tmp_path / "away").rename(weights)
    assert compress(source, dest, *asked, "--resume") == 0
    assert (
        left_over(dest) == ["out"]
        and (dest / WEIGHTS).read_bytes() == (whole(llama, *asked) / WEIGHTS).read_bytes()
    )


def test_a_source_that_becomes_another_file(source, asked, tmp_path, capsys, after_block):
    dest, weights, other = tmp_path / "out", source / WEIGHTS, tmp_path / "other"
    content = weights.read_bytes()
    other.write_bytes(content[: len(content) // 2])
    after_block(lambda: other.replace(weights))
    assert compress(source, dest, *asked) == 2
    assert f"{weights} is not read by safetensors: " in (told := said(capsys))
    assert "restore it, and run again with --resume." in told
    weights.write_bytes(content)
    assert compress(source, dest, *asked, "--resume") == 0


MAPPING = """
import mmap, sys
from compressor.cli.lost_pages import end_with_a_sentence
end_with_a_sentence()
with open(sys.argv[1], "r+b") as file:
    pages = mmap.mmap(file.fileno(), 0)
    file.truncate(0)
    pages[0]
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_a_source_that_is_shortened_in_place_ends_the_process(source):
    """Its pages are mapped, and gone."""
    command = [sys.executable, "-c", MAPPING, source / WEIGHTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4 and done.stderr.startswith(
        "\ncompressor: A file that is being read was shortened, or its disk fails."
    )


def test_a_source_of_other_weights_makes_no_result(source, asked, tmp_path, capsys, after_block):
    dest = tmp_path / "out"
    after_block(lambda: edit_tensors(source, lambda tensors: tensors["model.norm.weight"].zero_()))
    assert compress(source, dest, *asked) == 2
    assert f"{source} was changed while it was read, so nothing is made of it" in said(capsys)
    assert left_over(dest) == []


def test_a_source_that_is_written_to_is_told(source, asked, tmp_path, capsys, after_block):
    """Also where the clock of what was written is behind."""
    after_block(lambda: os.utime(source / WEIGHTS, (1, 1)))
    assert compress(source, tmp_path / "out", *asked) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"{WEIGHTS} in {source} was written to while it was read" in told


def test_a_source_that_is_left_alone_has_not_changed(source):
    checkpoint = Checkpoint(source)
    assert checkpoint.fingerprint and checkpoint.change() is None


# -- clocks, folders ----------------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_nothing(llama, asked, whole, tmp_path, monkeypatch):
    real, jumps = time.time, []

    def jumping() -> float:
        jumps.append(1)
        return real() - 86_400 * len(jumps)

    expected = whole(llama, *asked)
    monkeypatch.setattr(time, "time", jumping)
    assert compress(llama, tmp_path / "out", *asked) == 0
    assert same_files(expected, tmp_path / "out")


def test_what_came_to_be_meanwhile_is_not_replaced(
    llama, asked, whole, tmp_path, capsys, after_block
):
    dest = tmp_path / "out"
    after_block(lambda: (dest / "precious").mkdir(parents=True))
    assert compress(llama, dest, *asked) == 2
    told = said(capsys)
    assert f"{dest} has come to be while this was made, and is not replaced; move it away." in told
    assert "add --resume to go on" in told and [*dest.iterdir()] == [dest / "precious"]
    dest.rename(tmp_path / "elsewhere")
    assert compress(llama, dest, *asked, "--resume") == 0
    assert same_files(whole(llama, *asked), dest)


def test_a_signal_comes_too_late_for_a_published_result(
    llama, asked, tmp_path, capsys, monkeypatch
):
    publish = publishing.publish

    def signalled(*given):
        os.kill(os.getpid(), signal.SIGINT)
        publish(*given)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(publishing, "publish", signalled)
    assert compress(llama, tmp_path / "out", *asked) == 0
    assert "interrupted" not in said(capsys) and left_over(tmp_path / "out") == ["out"]


def test_a_signal_that_a_library_makes_another_error_of(
    llama, asked, tmp_path, capsys, after_block
):
    """As torch does that is in the middle of making a tensor."""

    def lost():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        except BaseException:
            raise ValueError("could not determine the shape") from None

    after_block(lost)
    assert compress(llama, tmp_path / "out", *asked) == 130
    told = said(capsys)
    assert "compress: interrupted in score" in told and "could not" not in told


# -- the work folder ----------------------------------------------------------------------------------


def test_a_journal_cut_at_any_byte_is_damaged(begun):
    work = begun.with_name("begun.work")
    content = (work / journal.NAME).read_bytes()
    for end in range(0, len(content), 7):
        (work / journal.NAME).write_bytes(content[:end])
        with pytest.raises(InputError, match=r"journal is damaged; remove .* to begin anew"):
            Journal.resume(work)
    for other in (b"[]", b"5", b"\xff{}", b"[" * 100_000):
        (work / journal.NAME).write_bytes(other)
        with pytest.raises(InputError, match="is damaged"):
            Journal.resume(work)


@pytest.mark.parametrize("version", [None, "0.0.9"])
def test_work_of_another_version_is_refused(llama, begun, asked, capsys, version):
    file = begun.with_name("begun.work") / journal.NAME
    entries = json.loads(file.read_text())
    assert entries.pop(journal.VERSION)
    file.write_text(json.dumps(entries | ({journal.VERSION: version} if version else {})))
    capsys.readouterr()
    asked = [*asked, "--select", "obs"]
    assert compress(llama, begun, *asked) == 2
    assert "(a journal of another version" in said(capsys)
    assert compress(llama, begun, *asked, "--resume") == 2
    told = said(capsys)
    assert f"was begun by {version or 'an older version'} of compressor, and this is" in told
    assert told.endswith("or remove the folder and leave out --resume.") and file.exists()


def test_work_without_a_journal_is_not_in_the_way(llama, begun, asked):
    """As a kill leaves it that comes while the work of a job that is done is being removed."""
    work = begun.with_name("begun.work")
    (work / journal.NAME).unlink()
    assert [*work.rglob("*.safetensors")] and keeping.described(work) == ""
    assert compress(llama, begun, *asked) == 0
    assert left_over(begun) == ["begun"]


def test_a_block_that_is_damaged_is_named(tmp_path):
    for content in (b"", b"\x08"):
        (tmp_path / "0.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=r"0\.safetensors is damaged: .*; remove it"):
            finished_block(tmp_path, 0)


# -- the system ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "begin"),
    [
        (SafetensorError("I/O error: File too large (os error 27)"), "The system refused: I/O"),
        (SafetensorError("Input/output error (os error 5)"), "The system refused: Input"),
        (OSError(30, "Read-only file system"), "The system refused: [Errno 30]"),
        (OSError(12, "Cannot allocate memory"), "Memory ran out: [Errno 12]"),
        (MemoryError(), "Memory ran out: no more could be had. Use fewer"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "Memory ran out"),
        (RuntimeError("can't start new thread"), "Memory ran out"),
        (ImportError("x.so: failed to map segment from shared object"), "Memory ran out"),
        (SystemError("<function f> returned NULL without setting an exception"), "Memory ran out"),
    ],
)
def test_what_the_system_refuses_is_of_the_machine(error, begin):
    known = as_error(error)
    assert isinstance(known, MachineError) and str(known).startswith(begin)


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EIO, 4), (errno.ENOSPC, 4), (errno.ENOENT, 2), (None, 2)]
)
def test_what_the_machine_did_not_read_is_no_fault_of_what_was_to_be_read(number, code):
    """transformers raises an OSError without a number where a file does not suit it."""
    try:
        try:
            raise OSError(number, "so it is") if number else OSError("so it is")
        except OSError as error:
            raise InputError("The tokenizer does not load.") from error
    except InputError as error:
        known = as_error(error)
    assert known.exit_code == code and str(known) == "The tokenizer does not load."


def test_a_panic_of_rust_is_a_sentence(llama, asked, tmp_path, monkeypatch, capsys):
    class PanicException(BaseException):
        pass

    def without(*_):
        raise PanicException("ThreadPoolBuildError { kind: IOError(Os { code: 11 }) }")

    monkeypatch.setattr(Checkpoint, "tokenizer", without)
    assert compress(llama, tmp_path / "out", *asked) == 4
    assert "Memory ran out: ThreadPoolBuildError" in said(capsys)


def test_what_is_wrong_with_a_file_is_not():
    assert as_error(SafetensorError("Error while deserializing header: HeaderTooLarge")) is None


@pytest.mark.parametrize(
    ("error", "raised"), [(MemoryError, MachineError), (None, VerificationError)]
)
def test_a_verification_without_memory_has_proven_nothing(llama, monkeypatch, error, raised):
    def loading(folder):
        raise (error or VerificationError)("so much")

    monkeypatch.setattr("compressor.verification.child.load", loading)
    with pytest.raises(raised, match="so much"):
        verify.verify(llama)


PARENT = """
import os, subprocess, sys
command = [sys.executable, "-m", "compressor.verification.bound", str(os.getpid()), "lasting"]
child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
print(child.stdout.readline(), flush=True)
os.kill(os.getpid(), 9)
"""
LASTING = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_what_a_killed_job_has_started_ends_with_it(tmp_path):
    (tmp_path / "lasting.py").write_text(LASTING)
    paths = [str(tmp_path), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", PARENT]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    until = time.monotonic() + 30
    try:
        child = psutil.Process(int(done.stdout))
    except psutil.NoSuchProcess:
        return
    while goes_on(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert not goes_on(child)


def goes_on(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # which nothing has waited for yet
    except psutil.NoSuchProcess:
        return False


def test_torch_says_no_memory_as_it_is_expected_to():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 62, dtype=torch.uint8)
    assert isinstance(as_error(caught.value), MachineError)
