"""The way of a job over a GPU, walked on a fake one: what it refuses, and what the host waits for."""

import json

import pytest
from fake_gpu import installing
from fake_gpu.ledger import LEDGER
from jobs import compress

JOBS = (
    "--keep 0.7",
    "--keep-blocks 0.7 --allocate measured --layout per-layer",
    "--keep-blocks 0.7 --method besa --repair none",
    "--keep 0.8 --method hywia --kv-cost measured --repair ridge",
    "--keep 0.8 --method hywia:calibrated --repair none",
    "--keep 0.8 --method kfac",
    "--keep 0.8 --method mask-fisher --repair ridge-local",
    "--keep 0.8 --method wanda-sp --repair none",
    "--keep 0.8 --method magnitude --repair none",
    "--keep 0.8 --recover lora --recover-steps 2 --recover-batch 2",
    "--sparsity 0.5",
    "--sparsity 0.5 --update obs",
    "--quantize w4a16 --quantize-group 16",
    "--sparsity 0.5 --method besa --quantize w4a16 --quantize-group 16",
)


@pytest.mark.parametrize("options", JOBS)
def test_job(llama, text_file, tmp_path, capsys, monkeypatch, options):
    found = {}
    for device in ("cpu", "cuda"):
        if device == "cuda":
            installing.install(monkeypatch)
        given = [llama, tmp_path / device, *options.split(), "--device", device]
        given += ["--calibration", text_file, "--evaluation", text_file, "--length", 32]
        assert compress(*given, "--no-verify", "--json") == 0
        found[device] = json.loads(capsys.readouterr().out)
    import os

    if os.environ.get("SHOW"):
        with capsys.disabled():
            print()
            for kind in ("kernels", "waits", "to_device", "to_host"):
                print(kind, LEDGER.total(kind))
                for row in LEDGER.by_line(kind)[:25]:
                    print("   ", row)
    assert found["cuda"]["perplexity_after"] == pytest.approx(
        found["cpu"]["perplexity_after"], rel=1e-3
    )
