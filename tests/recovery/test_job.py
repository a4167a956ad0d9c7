"""Recovery within `compress` and on its own: what is kept, what is said, and what is resumed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.checkpoint import Checkpoint
from compressor.cli import job, run
from compressor.errors import InputError, VerificationError
from compressor.recovery import training
from compressor.stages import stages
from compressor.tensors import SINGLE
from compressor.verify import verify, verify_here

TRAINED = Path(__file__).parents[2] / "examples/tiny-llama"


def compress(*arguments) -> int:
    return run(job, [str(a) for a in arguments])


def said(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


def left_over(dest: Path) -> list[str]:
    return sorted(p.name for p in dest.parent.iterdir() if p.name.startswith(dest.name))


def same_files(left: Path, right: Path) -> bool:
    names = sorted(p.name for p in left.iterdir())
    assert names == sorted(p.name for p in right.iterdir())
    return all((left / name).read_bytes() == (right / name).read_bytes() for name in names)


@pytest.fixture
def quick(text_file):
    """Options of a run of six steps, but for SOURCE, DEST and the target."""
    return [
        "--calibration", text_file, "--length", 32, "--samples", 4, "--no-verify", "--recover", "lora",
        "--recover-steps", 6, "--recover-batch", 4, "--recover-accumulate", 2,
        "--recover-save-every", 2, "--learning-rate", 0.01, "--distill-weight", 0.2,
    ]  # fmt: skip


@pytest.fixture
def unrecovered(quick):
    """The same job without recovery."""
    return quick[: quick.index("--recover")]


@pytest.fixture
def dies_after_a_save(monkeypatch):
    """Ends the first training after its second saved state, as the user would."""
    real, saved = training.save, []

    def save(*arguments):
        real(*arguments)
        saved.append(arguments)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "save", save)


@pytest.mark.parametrize("method", ["lora", "distill"])
def test_the_whole_job(any_family, equal_layout, quick, text_file, tmp_path, capsys, method):
    """Verified in a fresh process: the cut against its source, the recovered against what it was."""
    dest = tmp_path / "out"
    options = [o for o in quick if o != "--no-verify"]
    if Checkpoint(any_family).family.model_type != "llama" or method == "distill":
        options.append("--no-verify")  # which takes seconds
    code = compress(
        any_family, dest, "--keep", 0.7, *options, "--recover", method, "--evaluation", text_file,
        "--layout", equal_layout, "--json",
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and left_over(dest) == ["out"]
    assert found["perplexity_after"] < found["perplexity_pruned"]
    assert "given up" not in str(found["warnings"]) and "recover" in found["seconds"]
    if "--no-verify" not in options:
        assert found["verified"].startswith("logits within")
        assert ", recovered within" in found["verified"]
    recovery = found["recovery"]
    assert recovery["kept"] and recovery["settings"]["method"] == method
    assert len(recovery["losses"]) == 6
    assert [step for step, _ in recovery["held_back"]] == [0, 2, 4, 6]
    assert recovery["data"]["tokens"] > 0 and recovery["data"]["held_back"] > 0
    record = json.loads((dest / "compression.json").read_text())
    assert record["recovery"] == recovery
    assert record["perplexity_pruned"] == found["perplexity_pruned"]
    card = (dest / "README.md").read_text()
    assert f"recovered by 6 steps of {method}" in card and "no recovery followed" not in card
    with pytest.raises(InputError, match="trained after the cut"):
        verify(dest, any_family)
    assert verify_here(dest)["loads"]


def test_without_recovery_it_is_as_before(llama, quick, text_file, tmp_path, capsys):
    dest = tmp_path / "out"
    options = [*quick[: quick.index("--recover")], "--evaluation", text_file]
    assert compress(llama, dest, "--keep", 0.7, *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recovery"] is None
    assert found["perplexity_pruned"] == found["perplexity_after"]
    assert "no recovery followed" in (dest / "README.md").read_text()


def test_same_run_same_bytes(llama, quick, tmp_path):
    for name in "ab":
        assert compress(llama, tmp_path / name, "--keep", 0.7, *quick) == 0
    assert same_files(tmp_path / "a", tmp_path / "b")


def test_an_interrupted_job_is_resumed(
    llama, quick, tmp_path, dies_after_a_save, monkeypatch, capsys
):
    """Nothing that was done is done again, and the end is the same, of two ratios."""
    import compressor.pipeline

    targets = ["--keep", 0.8, 0.7]
    assert compress(llama, tmp_path / "dest", *targets, *quick) == 130
    assert left_over(tmp_path / "dest") == ["dest.partial", "dest.work"]
    assert compress(llama, tmp_path / "whole", *targets, *quick) == 0
    begun, real = [], training.restore

    def restore(path, *arguments):
        history = real(path, *arguments)
        begun.append((path.name, history and len(history.losses)))
        return history

    with monkeypatch.context() as patched:
        patched.setattr(training, "restore", restore)
        patched.setattr(compressor.pipeline, "score", None)
        assert compress(llama, tmp_path / "dest", *targets, *quick, "--resume") == 0
    assert begun == [("keep-0.8.training.safetensors", 4), ("keep-0.7.training.safetensors", None)]
    assert left_over(tmp_path / "dest") == ["dest"]
    for name in ("keep-0.8", "keep-0.7"):
        assert same_files(tmp_path / "dest" / name, tmp_path / "whole" / name)
    assert compress(llama, tmp_path / "other", *targets, *quick, "--resume") == 2
    assert "nothing to resume" in said(capsys)


@pytest.mark.parametrize("moment", ["verdict", "adopt", "judge", "publish_results"])
def test_an_interruption_after_the_training_is_resumed(llama, quick, tmp_path, monkeypatch, moment):
    import compressor.pipeline
    import compressor.recovery.job

    def stop(*_, **__):
        raise KeyboardInterrupt

    module = compressor.recovery.job if moment == "verdict" else compressor.pipeline
    assert compress(llama, tmp_path / "whole", "--keep", 0.7, *quick) == 0
    with monkeypatch.context() as patched:
        patched.setattr(module, moment, stop)
        assert compress(llama, tmp_path / "dest", "--keep", 0.7, *quick) == 130
    assert compress(llama, tmp_path / "dest", "--keep", 0.7, *quick, "--resume") == 0
    assert same_files(tmp_path / "dest", tmp_path / "whole")
    assert left_over(tmp_path / "dest") == ["dest"]


def test_a_killed_job_is_resumed(llama, quick, tmp_path):
    """SIGKILL, as soon as a state was saved."""
    options = [str(o) for o in [*quick, "--recover-steps", 90, "--recover-save-every", 5]]
    command = [sys.executable, "-m", "compressor", "compress", str(llama), str(tmp_path / "dest")]
    with subprocess.Popen([*command, "--keep", "0.7", *options], env=os.environ) as process:
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
        (["--recover-steps", 8], "had --recover-steps 6, and this one has 8"),
        (["--recover", "distill"], "had --recover lora, and this one has distill"),
        (["--keep", 0.6], "had the targets keep-0.7, and this one has keep-0.7 keep-0.6"),
        (["--seed", 1], "had --seed 0, and this one has 1"),
    ],
)
def test_a_resumed_job_is_the_same_job(
    llama, quick, tmp_path, capsys, dies_after_a_save, changed, message
):
    dest = tmp_path / "dest"
    assert compress(llama, dest, "--keep", 0.7, *quick) == 130
    assert compress(llama, dest, "--keep", 0.7, *quick, *changed, "--resume") == 2
    assert message in said(capsys)
    assert left_over(dest) == ["dest.partial", "dest.work"]
    assert compress(llama, dest, "--keep", 0.7, *quick, "--resume") == 0


def test_another_text_is_another_job(llama, quick, tmp_path, capsys, dies_after_a_save):
    text = tmp_path / "own.txt"
    text.write_text("A text of its own to train on, and some more of it.\n" * 20)
    options = ["--keep", 0.7, *quick, "--recover-data", text]
    assert compress(llama, tmp_path / "dest", *options) == 130
    text.write_text("Something else now, which is not what it was at all.\n" * 20)
    assert compress(llama, tmp_path / "dest", *options, "--resume") == 2
    assert "SHA-256 of the text to train on" in said(capsys)


def test_a_work_folder_of_the_users(llama, quick, tmp_path, dies_after_a_save):
    (tmp_path / "work").mkdir()
    options = ["--keep", 0.7, *quick, "--work-dir", tmp_path / "work"]
    assert compress(llama, tmp_path / "dest", *options) == 130
    assert compress(llama, tmp_path / "dest", *options, "--resume") == 0
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("judge", ["sequences held back", "evaluation text", None])
def test_a_recovery_that_makes_it_worse_keeps_the_cut(
    quick, unrecovered, text_file, tmp_path, capsys, judge
):
    """A trained model at an absurd rate, judged by the evaluation text or by what was held back;
    None: the loss is not finite.
    """
    job = ["--keep", 0.9, "--method", "random"]
    assert compress(TRAINED, tmp_path / "cut", *job, *unrecovered) == 0
    capsys.readouterr()
    options = [*job, *quick, "--learning-rate", 1.0 if judge else 1e38, "--clip-norm", 1e30]
    if judge == "evaluation text":
        options += ["--evaluation", text_file, "--max-perplexity-ratio", "off"]
    dest = tmp_path / "out"
    assert compress(TRAINED, dest, *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    warning = found["warnings"][-1]
    assert "given up" in warning and "the model stays as it was" in warning
    if judge:
        before, after = re.search(rf"{judge} went from ([\d.]+) to ([\d.]+);", warning).groups()
        assert float(before) < float(after)
    else:
        assert re.search(r"at step \d the loss is", warning)
    assert not found["recovery"]["kept"]
    assert found["perplexity_after"] == found["perplexity_pruned"]
    assert (dest / SINGLE).read_bytes() == (tmp_path / "cut" / SINGLE).read_bytes()
    assert "no recovery followed" in (dest / "README.md").read_text()
    assert left_over(dest) == ["out"] and not list(dest.glob("*/"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_verification_notices_another_tensor(make_checkpoint, tmp_path, dtype):
    """A file of expected logits is held against the folder."""
    from compressor.recovery.lora import load_adapted
    from compressor.recovery.settings import Recovery
    from compressor.recovery.stage import save_expected

    source = make_checkpoint(tmp_path / "model", dtype=dtype)
    model = load_adapted(source, Recovery("lora"), torch.device("cpu"), "auto", 0)
    save_expected(model, source, tmp_path / "expected.safetensors")
    folder = shutil.copytree(source, tmp_path / "folder")
    report = verify_here(folder, expected=tmp_path / "expected.safetensors")
    assert report["logits_difference"] == 0
    tensors = load_file(folder / SINGLE)
    tensors["model.layers.1.mlp.up_proj.weight"][3] += 0.5
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="differ from the model's in memory"):
        verify_here(folder, expected=tmp_path / "expected.safetensors")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--recover", "prayer"], 2, "--recover must be none, lora or distill, not 'prayer'"),
        (["--learning-rate", "-1"], 2, "--learning-rate must be positive, not -1.0"),
        (["--recover-data", "nowhere.jsonl"], 2, "no file 'nowhere.jsonl'"),
        (["--recover-range", "0:1"], 2, "gives 1 sequence"),
        (["--max-memory", "1KB"], 4, "--recover holds the whole cut model in memory"),
    ],
)
def test_bad_options_leave_nothing(llama, quick, tmp_path, capsys, arguments, code, message):
    dest = tmp_path / "out"
    assert compress(llama, dest, "--keep", 0.7, *quick, *arguments) == code
    assert message in said(capsys)
    assert left_over(dest) == []


def test_bad_rows_are_said_before_the_work(llama, quick, tmp_path, capsys, monkeypatch):
    import compressor.pipeline

    monkeypatch.setattr(compressor.pipeline, "score", None)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    assert compress(llama, tmp_path / "out", "--keep", 0.7, *quick, "--recover-data", rows) == 2
    assert "Line 2 of" in said(capsys)


@pytest.fixture
def alone(quick):
    """Options of the stage `recover` from those of `compress`."""
    samples = quick.index("--samples")
    return quick[:samples] + quick[samples + 2 :]


def stage(*arguments) -> int:
    return run(stages, [str(a) for a in arguments])


@pytest.mark.parametrize("method", ["lora", "distill"])
def test_the_stage_alone_gives_the_same(
    llama, quick, unrecovered, alone, text_file, tmp_path, capsys, method
):
    whole, cut, dest = (tmp_path / n for n in ("whole", "cut", "dest"))
    assert compress(llama, whole, "--keep", 0.7, *quick, "--recover", method) == 0
    assert compress(llama, cut, "--keep", 0.7, *unrecovered) == 0
    before = {p.name: p.read_bytes() for p in cut.iterdir()}
    capsys.readouterr()
    options = [*alone, "--recover", method, "--source", llama, "--evaluation", text_file]
    assert stage("recover", cut, dest, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["perplexity_after"] < found["perplexity_pruned"]
    assert (dest / SINGLE).read_bytes() == (whole / SINGLE).read_bytes()
    assert {p.name: p.read_bytes() for p in cut.iterdir()} == before
    record = json.loads((dest / "compression.json").read_text())
    assert record["recovery"]["kept"] and record["plan"]
    assert left_over(dest) == ["dest"]


def test_the_stage_that_makes_it_worse_writes_nothing(alone, tmp_path, capsys):
    dest = tmp_path / "dest"
    assert stage("recover", TRAINED, dest, *alone, "--learning-rate", 1.0) == 3
    assert "went from" in said(capsys)
    assert left_over(dest) == []


def test_the_stage_is_resumed(llama, alone, tmp_path, dies_after_a_save):
    assert stage("recover", llama, tmp_path / "dest", *alone) == 130
    assert stage("recover", llama, tmp_path / "dest", *alone, "--resume") == 0
    assert stage("recover", llama, tmp_path / "whole", *alone) == 0
    assert same_files(tmp_path / "dest", tmp_path / "whole")


def test_the_stage_refuses_what_it_cannot_do(llama, alone, tmp_path, capsys, make_checkpoint):
    dest = tmp_path / "dest"
    assert stage("recover", llama, dest, *alone, "--recover", "distill") == 2
    assert "name it with --source" in said(capsys)
    assert stage("recover", llama, dest, *alone, "--recover", "none") == 2
    assert "--recover none trains nothing" in said(capsys)
    other = make_checkpoint(tmp_path / "other", vocab_size=130)
    options = [*alone, "--recover", "distill", "--source", other]
    assert stage("recover", llama, dest, *options) == 2
    assert "must be what it was cut from" in said(capsys)
    assert left_over(dest) == []


@pytest.mark.slow
def test_two_processes_train_what_one_does(llama, alone, tmp_path):
    """Started by torchrun; sums of gradients differ in their order alone."""
    options = [str(o) for o in [*alone, "--lora-dropout", 0]]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for name, launcher in (("one", [sys.executable]), ("two", torchrun)):
        command = [*launcher, "-m", "compressor", "recover", str(llama), str(tmp_path / name)]
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / SINGLE) for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-3)


def test_compress_is_not_for_torchrun(llama, quick, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert compress(llama, tmp_path / "out", "--keep", 0.7, *quick) == 2
    assert "torchrun -m compressor recover" in said(capsys)


def test_a_real_model_recovers(stories, tmp_path, capsys):
    model, text = stories
    code = compress(
        model, tmp_path / "out", "--keep-blocks", 0.8, "--repair", "none", "--no-verify",
        "--length", 128,
        "--calibration", text, "--calibration-range", "0:200", "--samples", 64,
        "--evaluation", text, "--evaluation-range", "617:667", "--max-perplexity-ratio", "off",
        "--recover", "lora", "--recover-steps", 50, "--recover-batch", 4, "--json",
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["perplexity_after"] < 0.8 * found["perplexity_pruned"]
