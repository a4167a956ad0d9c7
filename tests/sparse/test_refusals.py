"""What `sparsify` refuses, and in which words."""

import pytest
import torch
from edits import edit_tensors
from jobs import compress, said, stage


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--sparsity", "1"], "--sparsity must be between 0 and 1, not 1.0"),
        (["--sparsity", "0"], "--sparsity must be between 0 and 1, not 0.0"),
        (["--sparsity", "nan"], "--sparsity must be between 0 and 1, not nan"),
        (["--sparsity", "1e-7"], "is less than one weight"),
        (["--sparsity", "-0.5"], "--sparsity must be between 0 and 1, not -0.5"),
        (["--sparsity", "0.5", "--keep", "0.7"], "There is no option 'keep'"),
        (["--sparsity", "0.5", "--method", "hywia"], "'hywia' does not zero single weights"),
        (["--sparsity", "0.5", "--repair", "none"], "There is no option 'repair'"),
        (["--sparsity", "0.5", "--update", "some"], "--update must be none or obs"),
        (["--sparsity", "0.5", "--besa-sharing", "head"], "besa_sharing must be row or layer"),
        (
            ["--sparsity", "0.5", "--method", "wanda", "--update", "obs"],
            "--update is for the method besa, and not for wanda",
        ),
    ],
)
def test_what_cannot_be_is_refused(llama, quick, tmp_path, capsys, arguments, message):
    assert compress(llama, tmp_path / "out", *quick, *arguments) == 2
    assert message in said(capsys)
    assert not any(tmp_path.iterdir())


def test_a_share_must_be_said(llama, tmp_path, capsys):
    assert stage("sparsify", llama, tmp_path / "out") == 2
    assert "Say how many weights become zero" in said(capsys)


def test_prodigy_must_be_installed(llama, quick, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("compressor.config.sparse.find_spec", lambda name: None)
    arguments = [*quick, "--sparsity", 0.5, "--besa-parity"]
    assert compress(llama, tmp_path / "out", *arguments) == 2
    assert "needs the package prodigyopt" in said(capsys)


def test_a_matrix_too_wide_to_rank_is_refused(llama, quick, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("compressor.job.checks.MOST_COLUMNS", 40)
    assert compress(llama, tmp_path / "out", *quick, "--sparsity", 0.5) == 2
    message = "layers.0.mlp.down_proj.weight has 48 columns; at most 40 can be ranked"
    assert message in said(capsys)


def test_a_model_whose_outputs_are_zero_is_named(make_checkpoint, quick, tmp_path, capsys):
    folder = make_checkpoint(tmp_path / "model")
    edit_tensors(folder, lambda tensors: [tensor.zero_() for tensor in tensors.values()])
    assert compress(folder, tmp_path / "out", *quick, "--sparsity", 0.5) == 2
    assert "All outputs of block 0 are zero" in said(capsys)


def test_damaged_weights_are_named(make_checkpoint, quick, tmp_path, capsys):
    folder = make_checkpoint(tmp_path / "model")
    edit_tensors(
        folder, lambda t: t["model.layers.1.mlp.up_proj.weight"].view(-1)[:3].fill_(torch.nan)
    )
    assert compress(folder, tmp_path / "out", *quick, "--sparsity", 0.5) == 2
    assert "model.layers.1.mlp.up_proj.weight holds NaN" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "out").exists()
