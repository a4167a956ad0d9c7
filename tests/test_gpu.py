"""Whole jobs on a GPU: their results cost as much as the CPU's."""

import json

import pytest
import torch
from jobs import compress, said

from compressor.verification.verify import verify

DEVICE = "cuda"
JOBS = (
    "--keep 0.7",
    "--keep-blocks 0.7 --allocate measured --layout per-layer",
    "--keep-blocks 0.7 --method besa --repair none",
    "--keep 0.8 --method hywia --kv-cost measured --repair ridge",
    "--keep 0.8 --method kfac",
    "--keep 0.8 --recover lora --recover-steps 2 --recover-batch 2",
    "--sparsity 0.5",
    "--sparsity 0.5 --update obs",
    "--quantize w4a16 --quantize-group 16",
)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", JOBS)
def test_a_job_on_a_gpu(llama, text_file, tmp_path, capsys, options):
    """In float32, in which both choose almost the same; a random model says the same by either."""
    perplexity = {}
    for device in ("cpu", DEVICE):
        given = [llama, tmp_path / device, *options.split(), "--device", device]
        given += [
            "--calibration",
            text_file,
            "--evaluation",
            text_file,
            "--length",
            32,
            "--no-verify",
            "--json",
        ]
        assert compress(*given) == 0
        found = json.loads(capsys.readouterr().out)
        perplexity[device] = found["perplexity_after"]
    assert found["peak_gpu_bytes"] > 0
    assert perplexity[DEVICE] == pytest.approx(perplexity["cpu"], rel=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_result_is_verified_there(llama, text_file, tmp_path, capsys):
    """In the job's own fresh process, beside what the job holds; and again when all is given back."""
    given = [llama, tmp_path / "out", "--keep", 0.7, "--device", DEVICE, "--repair", "ridge"]
    assert compress(*given, "--calibration", text_file, "--length", 32) == 0
    assert "ran on the CPU" not in said(capsys)
    report = verify(tmp_path / "out", llama, device=DEVICE)
    assert "note" not in report
    assert report["logits_difference"] <= 1e-4
