"""What a job refuses, and what it leaves when it breaks off: nothing."""

import shutil

import pytest
import torch
from jobs import compress, left_over, said
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from compressor.model.checkpoint import Checkpoint
from compressor.model.tensors import SINGLE


def test_exploding_perplexity_is_rejected(stories, tmp_path, capsys):
    model, text = stories
    dest = tmp_path / "out"
    arguments = [
        model, dest, "--keep", 0.5, "--method", "random", "--repair", "none", "--no-verify",
        "--evaluation", text, "--evaluation-range", "617:627",
    ]  # fmt: skip
    assert compress(*arguments) == 3
    assert "kept as" in capsys.readouterr().err
    assert left_over(dest) == ["out.rejected"]
    assert Checkpoint(tmp_path / "out.rejected").parameters < Checkpoint(model).parameters
    assert compress(*arguments, "--max-perplexity-ratio", "off", "--overwrite") == 0
    assert dest.exists()


def test_one_rejected_ratio_of_several(stories, tmp_path, capsys):
    model, text = stories
    code = compress(
        model, tmp_path / "out", "--keep", 0.97, 0.4, "--no-verify", "--calibration", text,
        "--calibration-range", "0:20", "--evaluation", text, "--evaluation-range", "617:627",
    )  # fmt: skip
    assert code == 3
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "keep-0.4.rejected",
        "keep-0.97",
    ]
    shown = capsys.readouterr().out
    rows = [line.split()[:1] for line in shown.splitlines()]
    assert ["keep-0.97"] in rows and ["keep-0.4.rejected"] in rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Say how small"),
        (["--keep", 0], "between 0 and 1, not 0"),
        (["--keep", 1], "between 0 and 1, not 1"),
        (["--keep", 0.01], "smallest possible is"),
        (["--target-params", "9B"], "must lie between"),
        (["--target-bytes", "much"], "'much' is not an amount"),
        (["--keep", 0.7, "--method", "magic"], "'magic' is not one of"),
        (["--keep", 0.7, "--mode", "magic"], "no mode 'magic'"),
        (["--keep", 0.7, "--layout", "spiral"], "'spiral' is not one of"),
        (["--keep", 0.7, "--container", "gpt2"], "cannot be written as 'gpt2'"),
        (["--keep", 0.7, "--protect", "0"], "add --layout nas"),
        (["--keep", 0.7, "--protect", "first"], "not 'first'"),
        (
            ["--keep", 0.7, "--allocate", "magic"],
            "uniform, global, exact, measured or besa, not 'magic'",
        ),
        (["--keep", 0.7, "--allocate", "global"], "add --layout nas"),
        (
            ["--keep", 0.7, "--allocate", "global", "--layout", "padded", "--statistics", "pruned"],
            "finds the widths when all are",
        ),
        (["--keep", 0.7, "--samples", 0], "--samples must be at least 1, not 0"),
        (["--keep", 0.7, "--length", 1], "--length must be at least 2, not 1"),
        (["--keep", 0.7, "--refine-epochs", 0], "refine_epochs must be at least 1, not 0"),
        (["--keep", 0.7, "--refine-epochs", 2, "--repair", "ridge"], "refine, not ridge"),
        (["--keep", 0.7, "--dtype", "int4"], "not 'int4'"),
        (["--keep", 0.7, 0.7], "given twice"),
        (["--keep", 0.7, "--protect", "9", "--layout", "padded"], "block 9; the model has 3"),
        (["--keep", 0.7, "--statistics", "wet"], "dense or pruned, not 'wet'"),
        (["--keep", 0.7, 0.8, "--statistics", "pruned"], "give one ratio"),
        (["--keep", 0.7, "--max-perplexity-ratio", "big"], "a number or off"),
        (["--keep", 0.7, "--calibration-range", "5:5"], "empty or too short"),
        (["--keep", 0.7, "--calibration", "nowhere.txt"], "no file 'nowhere.txt'"),
        (["--keep", 0.7, "--align", 0], "--align must be at least 1, not 0"),
        (["--keep", 0.7, "--repair", "glue"], "'glue' is not one of ridge"),
        (["--keep", 0.7, "--repair", "bias"], "use --repair ridge"),
        (["--keep", 0.7, "--samples", 1], "at least 2 sequences, not 1"),
        (["--keep", 0.7, "--lora-rank", 4], "lora_rank needs --recover lora or distill"),
        (["--keep", 0.7, "--quantize-group", 64], "quantize_group needs --quantize w4a16"),
        (["--keep", 0.7, "--evaluation-range", "0:5"], "evaluation_range needs --evaluation"),
    ],
)
def test_bad_options_leave_nothing(llama, quick, tmp_path, capsys, arguments, message):
    dest = tmp_path / "out"
    assert compress(llama, dest, *quick, *arguments) == 2
    error = said(capsys)
    assert message in error and "Traceback" not in error
    assert left_over(dest) == []


@pytest.mark.parametrize("dest", [".", ".."])
def test_dest_without_a_name(llama, quick, tmp_path, capsys, monkeypatch, dest):
    monkeypatch.chdir(tmp_path)
    assert compress(llama, dest, "--keep", 0.7, *quick, "--overwrite") == 2
    assert "names no new folder" in said(capsys)


def test_what_an_interrupted_job_left_is_not_lost(llama, quick, tmp_path, capsys):
    left = tmp_path / "out.work" / "journal.json"
    left.parent.mkdir()
    left.write_text('{"before": {"perplexity": 2.0}}')
    assert compress(llama, tmp_path / "out", "--keep", 0.7, *quick) == 2
    assert "add --resume" in said(capsys) and left.exists()
    assert compress(llama, tmp_path / "out", "--keep", 0.7, *quick, "--overwrite") == 0
    assert not left.exists()


def test_device_that_is_not_there(llama, quick, tmp_path, capsys):
    dest = tmp_path / "out"
    assert compress(llama, dest, "--keep", 0.7, *quick, "--device", "abacus") == 4
    assert "'abacus' cannot be used" in said(capsys)
    assert left_over(dest) == []


def test_dest_that_holds_the_source(llama, quick, tmp_path, capsys):
    source = shutil.copytree(llama, tmp_path / "models" / "m")
    for dest in (source, tmp_path / "models"):
        assert compress(source, dest, "--keep", 0.7, *quick, "--overwrite") == 2
        assert "holds the source" in said(capsys)
    (tmp_path / "link").symlink_to(tmp_path)
    assert compress(source, tmp_path / "link", "--keep", 0.7, *quick, "--overwrite") == 2
    assert Checkpoint(source).parameters


def test_activation_of_unknown_slope(make_checkpoint, quick, tmp_path, capsys):
    source = make_checkpoint(tmp_path / "relu", hidden_act="relu")
    assert compress(source, tmp_path / "a", "--keep", 0.7, *quick) == 2
    assert "use --method llm-bip:bip" in said(capsys)
    assert compress(source, tmp_path / "a", "--keep", 0.7, "--mode", "bip", *quick) == 0


def test_existing_dest(llama, quick, tmp_path, capsys):
    dest = tmp_path / "out"
    dest.mkdir()
    (dest / "precious").touch()
    assert compress(llama, dest, "--keep", 0.7, *quick) == 2
    assert "exists" in capsys.readouterr().err
    assert compress(llama, dest, "--keep", 0.7, *quick, "--overwrite") == 2
    assert "not the result of a former run" in said(capsys)
    assert (dest / "precious").exists()
    (dest / "compression.json").touch()
    assert compress(llama, dest, "--keep", 0.7, *quick, "--overwrite") == 0
    assert not (dest / "precious").exists()


@pytest.mark.parametrize("method", ["llm-bip", "magnitude"])
def test_nan_in_the_weights_is_named(llama, quick, tmp_path, capsys, method):
    source = shutil.copytree(llama, tmp_path / "source")
    tensors = load_file(source / SINGLE)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, source / SINGLE)
    dest = tmp_path / "out"
    assert compress(source, dest, "--keep", 0.7, "--method", method, *quick) == 2
    error = said(capsys)
    assert "model.layers.1.mlp.up_proj.weight holds NaN" in error
    assert left_over(dest) == []


def test_full_disk_is_said_before_starting(llama, quick, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert compress(llama, tmp_path / "out", "--keep", 0.7, *quick) == 4
    assert "has 1 KB free, and the result needs" in capsys.readouterr().err
    assert left_over(tmp_path / "out") == []


def test_failed_verification_leaves_nothing(llama, text_file, tmp_path, capsys, monkeypatch):
    import compressor.job.proving
    from compressor.errors import VerificationError

    def fail(*_, **__):
        raise VerificationError("The logits differ.")

    monkeypatch.setattr(compressor.job.proving, "verify", fail)
    code = compress(llama, tmp_path / "out", "--keep", 0.7, "--calibration", text_file)
    assert code == 5
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_interruption_leaves_nothing(llama, quick, tmp_path, monkeypatch):
    import compressor.job.result

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(compressor.job.result, "write_folder", interrupt)
    assert compress(llama, tmp_path / "out", "--keep", 0.7, *quick) == 130
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_interruption_of_a_repair_leaves_nothing(llama, quick, tmp_path, monkeypatch):
    from compressor.repairing.block import BlockRepair

    run_block = BlockRepair.run

    def interrupt(block, *streams):
        if block.index == 1:
            raise KeyboardInterrupt
        return run_block(block, *streams)

    monkeypatch.setattr(BlockRepair, "run", interrupt)
    options = ["--keep", 0.7, "--max-memory", "1KB", *quick]
    assert compress(llama, tmp_path / "out", *options) == 130
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    assert not [*tmp_path.rglob("activations-*")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--method", "wanda-sp", "--coarse", "gate"],
            "--coarse does not apply to the method wanda",
        ),
        (["--method", "taylor", "--fine", "mix"], "--fine does not apply to the method taylor"),
        (["--method", "hywia", "--coarse", "rough"], "one of gate, vector, not 'rough'"),
        (["--method", "taylor", "--reduce", "median"], "sum, mean, max, prod, last, not 'median'"),
    ],
)
def test_grains_that_do_not_apply(llama, quick, tmp_path, capsys, options, words):
    assert compress(llama, tmp_path / "out", "--keep", 0.7, *options, *quick) == 2
    assert words in capsys.readouterr().err.replace("\n", " ")
    assert left_over(tmp_path / "out") == []


@pytest.mark.parametrize("method", ["hywia", "llm-bip"])
def test_a_full_disk_under_the_activations_is_a_clean_stop(
    llama, quick, tmp_path, capsys, monkeypatch, method
):
    written = []

    def full(tensors, path):
        if len(written) == 3:
            raise SafetensorError("Error while serializing: No space left on device (os error 28)")
        written.append(save_file(tensors, path))

    monkeypatch.setattr("compressor.model.activations.save_file", full)
    options = ["--keep", 0.7, "--method", method, "--max-memory", "1KB", *quick]
    assert compress(llama, tmp_path / "out", *options) == 4
    assert "No space left" in capsys.readouterr().err
    kept = ["out.work"] if method == "llm-bip" else []  # hywia's first block comes last
    assert len(written) == 3 and left_over(tmp_path / "out") == kept
