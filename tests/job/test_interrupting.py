"""A job that is interrupted keeps what it has done, says so, and ends with the same bytes."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from jobs import compress, left_over, said, same_bytes, same_files, stage

from compressor.job import journal, keeping
from compressor.job.interruption import Interrupted
from compressor.job.journal import Journal
from compressor.model import pauses, saved_blocks
from compressor.model.saved_blocks import count_blocks, keep_block
from compressor.model.stream import BlockStream


@pytest.fixture
def asked(text_file):
    return [
        "--keep",
        0.7,
        "--calibration",
        text_file,
        "--length",
        32,
        "--samples",
        6,
        "--no-verify",
    ]


@pytest.fixture
def interrupted(monkeypatch):
    """The function that has the n-th block of a folder of the work folder interrupted."""

    def at(folder: str, number: int, error: BaseException | None = None) -> None:
        written, save = [], saved_blocks.save_file

        def saving(tensors, path, *given):
            if path.parent.name == folder:
                written.append(path)
                if len(written) == number:
                    raise error or Interrupted
            save(tensors, path, *given)

        monkeypatch.setattr(saved_blocks, "save_file", saving)

    with monkeypatch.context() as monkeypatch:
        yield at


# -- real signals, the real command -----------------------------------------------------------------

PAUSING = """
import sys, time
from pathlib import Path
from compressor.model import saved_blocks
from compressor.cli.compress import app
from compressor.cli.running import run
folder, ready, *arguments = sys.argv[1:]
written, save = [], saved_blocks.save_file
def saving(tensors, path, *given):
    if path.parent.name == folder:
        written.append(path)
        if len(written) == 3:
            Path(ready).touch()
            # A thread beside the main one is not interrupted: it waits until the signal was sent.
            while not Path(ready).with_name("sent").exists():
                time.sleep(0.01)
    save(tensors, path, *given)
saved_blocks.save_file = saving
sys.exit(run(app, arguments))
"""


def started(folder: str, ready, *arguments, **given) -> subprocess.Popen:
    """`compress` in a process of its own, once it is in the third block of a pass."""
    command = [sys.executable, "-c", PAUSING, folder, *map(str, (ready, *arguments))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **given)
    while not ready.exists() and process.poll() is None:
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(
    ("folder", "number", "ignored"),
    [
        ("score", signal.SIGTERM, False),
        ("select", signal.SIGINT, False),
        ("keep-0.7", signal.SIGINT, True),
    ],
)
def test_a_signal_says_what_is_kept(llama, asked, whole, tmp_path, folder, number, ignored):
    dest = tmp_path / "part"
    ignore = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None
    process = started(folder, tmp_path / "ready", llama, dest, *asked, preexec_fn=ignore)
    process.send_signal(number)
    (tmp_path / "sent").touch()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    # What a repair has found is saved beside the work on what follows, which may be done by then.
    places = [f"{folder}, after block 2"]
    if folder == "keep-0.7":
        places = ["repair, after block 2", "repair, after block 3"]
    assert errors.splitlines()[-1] in [
        f"compress: interrupted in {where} of 3. What is done is kept in {dest}.work; "
        "add --resume to go on."
        for where in places
    ], errors
    assert left_over(dest) == ["part.work"]
    assert compress(llama, dest, *asked, "--resume") == 0
    assert same_files(whole(llama, *asked), dest) and left_over(dest) == ["part"]


def test_what_a_kill_left_is_told_by_the_next_run(llama, asked, tmp_path, capsys):
    dest = tmp_path / "part"
    process = started("select", tmp_path / "ready", llama, dest, *asked)
    process.kill()
    process.communicate()
    assert compress(llama, dest, *asked) == 2
    told = said(capsys)
    assert "part.work holds what an interrupted job had done (scores, 2 blocks of select" in told
    assert "add --resume to go on" in told
    assert compress(llama, dest, *asked, "--resume") == 0


# -- every pass ---------------------------------------------------------------------------------------

PASSES = [
    ("score", ["--method", "llm-bip"]),
    ("score", ["--method", "magnitude"]),
    ("score", ["--method", "wanda-sp", "--statistics", "pruned"]),
    ("score", ["--method", "hywia"]),
    ("score", ["--method", "taylor"]),
    ("score", ["--method", "kfac"]),
    ("select", ["--select", "obs"]),
    ("landscape", ["--allocate", "exact", "--repair", "ridge"]),
]


@pytest.mark.parametrize("between", [pauses.EVERY, 0], ids=["blocks", "states too"])
@pytest.mark.parametrize(("folder", "options"), PASSES, ids=lambda x: " ".join(x) if x else "")
def test_every_pass_goes_on(
    llama, asked, whole, tmp_path, capsys, monkeypatch, interrupted, folder, options, between
):
    asked = [*asked, *options]
    if "--repair" not in options:
        asked += ["--repair", "none"]
    dest, expected = tmp_path / "part", whole(llama, *asked)
    monkeypatch.setattr(pauses, "EVERY", between)
    interrupted(folder, 3)
    capsys.readouterr()
    assert compress(llama, dest, *asked) == 130
    told = said(capsys)
    assert "interrupted in" in told and f"kept in {dest}.work; add --resume to go on" in told
    assert count_blocks(dest.with_name("part.work") / folder) == 2
    kept = []
    monkeypatch.setattr(saved_blocks, "save_file", spied(saved_blocks.save_file, kept, folder))
    assert compress(llama, dest, *asked, "--resume") == 0
    assert len(kept) == 1  # the third block alone was found anew
    assert same_files(expected, dest) and left_over(dest) == ["part"]


def spied(save, kept: list, folder: str):
    def saving(tensors, path, *given):
        kept.extend([path] * (path.parent.name == folder))
        save(tensors, path, *given)

    return saving


def test_kept_states_spare_the_way_back(llama, asked, tmp_path, monkeypatch, interrupted):
    monkeypatch.setattr(pauses, "EVERY", 0)
    monkeypatch.setattr(pauses, "PARTS", 0)
    dest, weights, seen = tmp_path / "part", BlockStream.weights, []

    def watched(stream, blocks=None):
        for index, tensors in weights(stream, blocks):
            seen.append(index)
            yield index, tensors

    options = [*asked, "--repair", "none", "--evaluation", "none"]
    interrupted("score", 3)
    assert compress(llama, dest, *options) == 130
    monkeypatch.setattr(BlockStream, "weights", watched)
    assert compress(llama, dest, *options, "--resume") == 0
    assert seen == [1, 2]  # the forecast times steps on the middle block


@pytest.mark.parametrize("select", ["score", "obs"])
def test_measured_costs_are_kept_in_parts(llama, asked, tmp_path, monkeypatch, interrupted, select):
    monkeypatch.setattr("compressor.scoring.probing.PART", 1)
    dest = tmp_path / "part"
    asked = [*asked, "--repair", "none", "--kv-cost", "measured", "--select", select]
    assert compress(llama, tmp_path / "whole", *asked) == 0
    interrupted("probes", 2)
    assert compress(llama, dest, *asked) == 130
    assert count_blocks(dest.with_name("part.work") / "select/probes") == 1
    assert compress(llama, dest, *asked, "--resume") == 0
    assert same_files(tmp_path / "whole", dest)


def test_single_weights_go_on(llama, asked, tmp_path, monkeypatch, interrupted):
    asked = ["--sparsity", 0.5, "--method", "sparsegpt", *asked[2:]]
    dest = tmp_path / "part"
    assert compress(llama, tmp_path / "whole", *asked) == 0
    interrupted("blocks", 3)
    assert compress(llama, dest, *asked) == 130
    assert compress(llama, dest, *asked, "--resume") == 0
    assert same_files(tmp_path / "whole", dest)


def test_quantisation_goes_on(make_checkpoint, asked, tmp_path, monkeypatch, interrupted):
    pytest.importorskip("compressed_tensors")
    source = make_checkpoint(tmp_path / "source", intermediate_size=64)
    asked = ["--quantize", "w4a16", "--quantize-group", 32, *asked[2:]]
    dest = tmp_path / "part"
    assert compress(source, tmp_path / "whole", *asked) == 0
    interrupted("source", 3)
    assert compress(source, dest, *asked) == 130
    assert count_blocks(dest.with_name("part.work") / "quantize/source") == 2
    assert compress(source, dest, *asked, "--resume") == 0
    assert same_files(tmp_path / "whole", dest)


# -- single stages ------------------------------------------------------------------------------------


def test_the_stages_alone_go_on(llama, asked, tmp_path, capsys, monkeypatch, interrupted):
    text, names = asked[2:-1], ("whole", "part")
    scores = {name: tmp_path / f"{name}.safetensors" for name in names}
    assert stage("score", llama, "--out", scores["whole"], *text) == 0
    interrupted("select", 2)
    assert stage("score", llama, "--out", scores["part"], *text) == 130
    assert not scores["part"].exists() and "part.safetensors.work; add --resume" in said(capsys)
    assert stage("score", llama, "--out", scores["part"], *text) == 2
    assert "2 blocks of score" not in (told := said(capsys)) and "1 block of select" in told
    assert stage("score", llama, "--out", scores["part"], *text, "--resume") == 0
    assert same_bytes(scores["part"], scores["whole"])
    assert not scores["part"].with_name("part.safetensors.work").exists()

    plan, dests = tmp_path / "plan.json", {name: tmp_path / name for name in names}
    assert stage("plan", scores["whole"], "--keep", 0.7, "--out", plan) == 0
    cut = ["--plan", plan, "--no-verify", *text]
    assert stage("cut", llama, dests["whole"], *cut) == 0
    interrupted("repair", 3)
    assert stage("cut", llama, dests["part"], *cut) == 130
    assert "after block 3 of 3" in said(capsys)
    assert stage("cut", llama, dests["part"], *cut, "--length", 16, "--resume") == 2
    assert "had --length 32, and this one has 16" in said(capsys)
    assert stage("cut", llama, dests["part"], *cut, "--resume") == 0
    assert same_files(dests["whole"], dests["part"]) and left_over(dests["part"])[:1] == ["part"]


# -- what is said and left ----------------------------------------------------------------------------


def test_nothing_done_leaves_nothing(llama, asked, tmp_path, capsys, interrupted):
    interrupted("score", 1)
    assert compress(llama, tmp_path / "part", *asked) == 130
    assert said(capsys).endswith("compress: interrupted in score. Nothing was kept.")
    assert left_over(tmp_path / "part") == []
    assert compress(llama, tmp_path / "part", *asked) == 0  # nothing is in the way


def test_an_error_in_the_middle_says_what_is_kept(llama, asked, tmp_path, capsys, interrupted):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    interrupted("select", 2, full)
    assert compress(llama, tmp_path / "part", *asked) == 4
    told = said(capsys)
    assert "No space left" in told and "part.work; add --resume to go on." in told


def test_quiet_says_it_too(llama, asked, tmp_path, capsys, interrupted):
    interrupted("select", 2)
    assert compress(llama, tmp_path / "part", *asked, "--json") == 130
    assert said(capsys).startswith("compress: interrupted in select, after block 1 of 3.")


def test_a_second_signal_does_not_tear_the_cleaning_up(
    llama, asked, tmp_path, monkeypatch, interrupted
):
    remove, seen = keeping.shutil.rmtree, []

    def again(folder, **given):
        if not seen:
            seen.append(folder)
            os.kill(os.getpid(), signal.SIGINT)
        remove(folder, **given)

    def first(*_):
        monkeypatch.setattr(keeping.shutil, "rmtree", again)
        os.kill(os.getpid(), signal.SIGINT)

    interrupted("select", 2, KeyboardInterrupt())
    monkeypatch.setattr(
        "compressor.model.passes.keep_block", lambda *given: (keep_block(*given), first())
    )
    assert compress(llama, tmp_path / "part", *asked) == 130
    assert seen and left_over(tmp_path / "part") == ["part.work"]


def test_handlers_return_to_what_they_were(llama, tmp_path):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert compress(llama, tmp_path / "out", "--keep", 80) == 2
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_journal_that_is_damaged_is_said(llama, asked, tmp_path, capsys):
    work = tmp_path / "out.work"
    work.mkdir()
    (work / journal.NAME).write_text("{")
    assert compress(llama, tmp_path / "out", *asked) == 2
    assert "a journal that is damaged" in said(capsys)
    assert compress(llama, tmp_path / "out", *asked, "--resume") == 2
    assert "is damaged" in said(capsys)


def test_agreements_are_no_work(tmp_path):
    Journal(tmp_path, {}).agree("settings", {"--seed": "0"})
    assert keeping.described(tmp_path) == ""
