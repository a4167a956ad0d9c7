"""A job's way over a GPU, walked on a fake one: what it would refuse, and what the host waits for."""

import json
from collections import Counter

import pytest
import torch
from fake_gpu import installing
from fake_gpu.ledger import LEDGER
from jobs import compress
from repairs import repaired

from compressor.planning.plan import Plan
from compressor.text.tokens import TokenSet

DEVICE = "cuda:1"
# Sequences: so many that as many refits help on either number of them.
BLOCKS, FEW, MANY = 2, 5, 11
JOBS = (
    "--keep 0.7",
    "--keep-blocks 0.7 --allocate measured --layout per-layer",
    pytest.param("--keep-blocks 0.7 --method besa --repair none", marks=pytest.mark.breadth),
    "--keep 0.8 --method hywia --kv-cost measured --repair ridge",
    pytest.param("--keep 0.8 --method hywia:calibrated --repair none", marks=pytest.mark.breadth),
    pytest.param("--keep 0.8 --method kfac --repair none", marks=pytest.mark.breadth),
    "--keep 0.8 --method mask-fisher --repair ridge-local",
    pytest.param("--keep 0.8 --method wanda-sp --repair none", marks=pytest.mark.breadth),
    "--keep 0.8 --recover lora --recover-steps 2 --recover-batch 2 --repair none",
    "--sparsity 0.5",
    pytest.param("--sparsity 0.5 --update obs", marks=pytest.mark.breadth),
    "--quantize w4a16 --quantize-group 16",
    "--sparsity 0.5 --method besa --quantize w4a16 --quantize-group 16",
)


@pytest.fixture(scope="module")
def model(make_checkpoint, tmp_path_factory):
    """As small as can be: what is counted does not depend on it."""
    sizes = {"num_hidden_layers": BLOCKS, "intermediate_size": 32, "num_key_value_heads": 2}
    folder = tmp_path_factory.mktemp("gpu") / "model"
    return make_checkpoint(folder, num_attention_heads=4, head_dim=8, **sizes)


def run(folder, text, dest, options, capsys, *more) -> dict:
    """What a job on some device says."""
    texts = ["--calibration", text, "--evaluation", text, "--length", 32]
    given = [folder, dest, *options.split(), *texts, *more]
    assert compress(*given, "--no-verify", "--json") == 0
    return json.loads(capsys.readouterr().out)


# Forecasts are made once; and whenever the whole model is called, before its first block and after its
# last, transformers asks whether positions begin anew in a sequence.
ELSEWHERE = ("compressor/job/forecast", "compressor/model/stream.py")


def growing(few: Counter, many: Counter) -> dict[str, int]:
    """By line, how much oftener the host waited with so many sequences more."""
    more = Counter()
    for (kind, _, (file, line)), count in (many - few).items():
        if kind == "waits" and not file.startswith(ELSEWHERE):
            more[f"{file}:{line}"] += count
    return dict(more)


@pytest.mark.parametrize("options", JOBS)
def test_a_job(model, text_file, tmp_path, capsys, monkeypatch, options):
    """Nothing is mixed, no copy is read too early, and what comes out is what the CPU makes of it.

    Nowhere does the host wait once a sequence and block: all sequences are enqueued before the device is
    asked about any.
    """
    batches = TokenSet.batches
    monkeypatch.setattr(TokenSet, "batches", lambda self, *_: batches(self, 32))
    expected = run(model, text_file, tmp_path / "cpu", options, capsys, "--samples", FEW)
    installing.install(monkeypatch)
    seen = []
    for samples in (FEW, MANY):
        LEDGER.clear()
        given = ["--device", DEVICE, "--samples", samples]
        found = run(model, text_file, tmp_path / f"{samples}", options, capsys, *given)
        seen.append(LEDGER.counts.copy())
        if samples == FEW:
            assert LEDGER.total("kernels") > 100
            assert found["perplexity_after"] == pytest.approx(
                expected["perplexity_after"], rel=1e-3
            )
    often = {line: n for line, n in growing(*seen).items() if n >= (MANY - FEW) * BLOCKS}
    assert often == {}


def test_a_repair_cuts_what_is_there(model, monkeypatch):
    """Of a block's weights nothing goes to the device a second time: it is cut where it lies."""
    plan = Plan([{"attention": [0], "ffn": [*range(0, 32, 2)]}] * BLOCKS)
    on_the_cpu, expected = repaired(model, plan=plan)
    installing.install(monkeypatch)
    LEDGER.clear()
    repair, found = repaired(model, plan=plan, device=DEVICE)
    copies = Counter()
    for (kind, _, (file, _)), count in LEDGER.counts.items():
        if kind == "to_device":
            copies[file.removeprefix("compressor/")] += count
    assert copies["model/staging.py"] == BLOCKS
    LEDGER.clear()
    repair.stream.record([batch.ids for batch in repair.task.batches])
    assert copies["model/stream.py"] == LEDGER.total("to_device")  # the embedding, norms, the ids
    assert [entry["tensors"] for entry in repair.record] == [
        entry["tensors"] for entry in on_the_cpu.record
    ]
    for one, other in zip(expected, found, strict=True):
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5)
