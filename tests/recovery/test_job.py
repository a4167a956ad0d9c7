"""Recovery within `compress`: what is kept, and what is said."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from jobs import compress, left_over, said, same_bytes, same_files
from safetensors.torch import load_file, save_file

from compressor.errors import InputError, VerificationError
from compressor.model.checkpoint import Checkpoint
from compressor.model.tensors import SINGLE
from compressor.verification.child import verify_here
from compressor.verification.verify import verify
from compressor.writing.record import without_places

TRAINED = Path(__file__).parents[2] / "examples/tiny-llama"


@pytest.mark.parametrize(
    "method", ["lora", "distill", pytest.param("full", marks=pytest.mark.breadth)]
)
def test_the_whole_job(any_family, equal_layout, options, text_file, tmp_path, capsys, method):
    """Verified: the cut against its source, the recovered against what it was."""
    dest = tmp_path / "out"
    options = [o for o in options if o != "--no-verify"]
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
    assert record["recovery"] == without_places(recovery)
    assert record["perplexity_pruned"] == found["perplexity_pruned"]
    card = (dest / "README.md").read_text()
    assert f"recovered by 6 steps of {method}" in card and "no recovery followed" not in card
    with pytest.raises(InputError, match="trained after the cut"):
        verify(dest, any_family)
    assert verify_here(dest)["loads"]


def test_without_recovery_it_is_as_before(llama, unrecovered, text_file, tmp_path, capsys):
    dest = tmp_path / "out"
    options = [*unrecovered, "--evaluation", text_file]
    assert compress(llama, dest, "--keep", 0.7, *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recovery"] is None
    assert found["perplexity_pruned"] == found["perplexity_after"]
    assert "no recovery followed" in (dest / "README.md").read_text()


def test_same_run_same_bytes(llama, options, tmp_path):
    for name in "ab":
        assert compress(llama, tmp_path / name, "--keep", 0.7, *options) == 0
    assert same_files(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("judge", ["sequences held back", "evaluation text", None])
def test_a_recovery_that_makes_it_worse_keeps_the_cut(
    options, unrecovered, text_file, tmp_path, capsys, judge
):
    """A trained model at an absurd rate, judged by the evaluation text or by what was held back;
    None: the loss is not finite.
    """
    job = ["--keep", 0.9, "--method", "random"]
    assert compress(TRAINED, tmp_path / "cut", *job, *unrecovered) == 0
    capsys.readouterr()
    options = [*job, *options, "--learning-rate", 1.0 if judge else 1e38, "--clip-norm", 1e30]
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
    assert same_bytes(dest / SINGLE, tmp_path / "cut" / SINGLE)
    assert "no recovery followed" in (dest / "README.md").read_text()
    assert left_over(dest) == ["out"] and not list(dest.glob("*/"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_verification_notices_another_tensor(make_checkpoint, tmp_path, dtype):
    """A file of expected logits is held against the folder."""
    from compressor.config.recovery import RecoveryConfig
    from compressor.recovery.lora import load_adapted
    from compressor.recovery.stage import save_expected

    source = make_checkpoint(tmp_path / "model", dtype=dtype)
    model = load_adapted(source, RecoveryConfig("lora"), torch.device("cpu"), "auto", 0)
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
        (
            ["--recover", "prayer"],
            2,
            "--recover must be none, lora, distill, full or full-distill, not 'prayer'",
        ),
        (["--learning-rate", "-1"], 2, "learning_rate must be positive, not -1"),
        (["--recover-data", "nowhere.jsonl"], 2, "no file 'nowhere.jsonl'"),
        (["--recover-range", "0:1"], 2, "gives 1 sequence"),
        (["--max-memory", "1KB"], 4, "--recover holds the whole cut model in memory"),
    ],
)
def test_bad_options_leave_nothing(llama, options, tmp_path, capsys, arguments, code, message):
    dest = tmp_path / "out"
    assert compress(llama, dest, "--keep", 0.7, *options, *arguments) == code
    assert message in said(capsys)
    assert left_over(dest) == []


def test_bad_rows_are_said_before_the_work(llama, options, tmp_path, capsys, monkeypatch):
    import compressor.job.score_units

    monkeypatch.setattr(compressor.job.score_units, "score", None)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    assert compress(llama, tmp_path / "out", "--keep", 0.7, *options, "--recover-data", rows) == 2
    assert "Line 2 of" in said(capsys)


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
