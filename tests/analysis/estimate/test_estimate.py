"""The stage: before and after of a cut, the clock, what a terminal shows, and every refusal."""

import io
import json

import psutil
import pytest
import torch
from jobs import compress, said, stage
from rich.console import Console

from compressor.analysis.estimate import estimate, machine, measuring
from compressor.analysis.estimate.tables import scaled, tables
from compressor.model.checkpoint import Checkpoint
from compressor.model.per_layer import class_of
from compressor.model.widths import model_widths


def text(result: dict) -> str:
    console = Console(file=io.StringIO(), width=140)
    for shown in tables(result):
        console.print(shown)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def cut(llama, tmp_path_factory):
    dest = tmp_path_factory.mktemp("cut") / "small"
    options = ["--keep-blocks", "0.5", "--method", "magnitude", "--no-verify"]
    assert compress(llama, dest, *options) == 0
    return dest


@pytest.fixture
def quick_ceilings(monkeypatch):
    """The same measurements on small sizes."""
    monkeypatch.setattr(machine, "LARGE", {"cpu": 2**20})
    monkeypatch.setattr(machine, "SIDE", {"cpu": 64})
    machine.copy_bandwidth.cache_clear()
    machine.multiply_rate.cache_clear()


def test_before_and_after_of_a_cut(llama, cut, capsys):
    options = ("--device", "a100", "--batch", 3, "--context", 40)
    assert stage("estimate", cut, "--before", llama, *options, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    before, after = result["models"]
    for model, folder in ((before, llama), (after, cut)):
        checkpoint = Checkpoint(folder)
        assert model["total"]["parameters"] == checkpoint.parameters
        assert model["total"]["bytes"] == checkpoint.bytes
        names = [row["block"] for row in model["parts"]]
        assert names == ["embedding", "0", "1", "2", "head"]
        assert model["parts"][1]["ffn"] == checkpoint.units["ffn"]
        assert model["parts"][1]["kv_heads"] == checkpoint.kv_heads
        kv = sum(2 * checkpoint.kv_heads * checkpoint.head_dim * 4 for _ in range(3))
        assert model["total"]["kv_bytes_per_token"] == kv
        assert model["total"]["kv_bytes"] == 3 * 40 * kv
    for key in ("parameters", "flops_per_token", "kv_bytes", "decode_seconds", "prefill_seconds"):
        assert after["total"][key] < before["total"][key]
    # What surrounds the blocks costs the same.
    assert [before["parts"][i] for i in (0, -1)] == [after["parts"][i] for i in (0, -1)]
    shown = text(result)
    assert "0-2, each" in shown and "before and after" in shown and "Zeros count" in shown
    assert f"{after['total']['bytes'] / before['total']['bytes']:.3f}" in shown


def test_blocks_that_differ_are_shown_each(llama):
    result = estimate(llama, device="h200")
    result["models"][0]["parts"][2]["ffn"] = 20
    lines = [line.split("│")[1].strip() for line in text(result).splitlines() if "│" in line]
    assert lines == ["embedding", "0", "1", "2", "head", "all"]


def test_the_context_is_at_most_the_models_positions(llama):
    assert estimate(llama, device="h200")["context"] == 64


def test_ceilings_of_this_machine_are_measured(llama, quick_ceilings):
    model = estimate(llama, device="cpu")["models"][0]
    assert model["bandwidth"] > 1e6 and model["peak"] > 1e6
    assert "measured in this run on" in model["ceilings"]
    total = sum(row["decode_seconds"] for row in model["parts"])
    assert model["total"]["tokens_per_second"] == pytest.approx(1 / total)


def test_the_clock_beside_the_prediction(llama, cut, quick_ceilings, capsys):
    options = ("--device", "cpu", "--context", 12, "--measure")
    assert stage("estimate", cut, "--before", llama, *options, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    for model in result["models"]:
        for phase in ("decode", "prefill"):
            row = model["measured"][phase]
            assert row["roofline"] == model["total"][f"{phase}_seconds"]
            assert row["expected"] > row["overhead"] > 0
            ratio = row["measured"] / row["expected"]
            assert row["measured_over_expected"] == pytest.approx(ratio)
    shown = text(result)
    for expected in ("after prefill", "speed-up, decode", "overhead is", "static cache of 12"):
        assert expected in shown


def test_every_family_is_timed(any_family):
    found, overhead = measuring.measure(Checkpoint(any_family), "cpu", batch=2, context=9)
    assert min(found.prefill, found.decode, overhead.prefill, overhead.decode) > 0


def test_the_empty_twin_has_the_blocks_and_nothing_else(any_family):
    checkpoint = Checkpoint(any_family)
    twin = measuring.empty_twin(checkpoint)
    assert twin.config.num_hidden_layers == checkpoint.blocks
    own = class_of(twin.config, checkpoint.family)
    assert type(twin).__name__ == (own.__name__ if own else checkpoint.family.architecture)
    positions = model_widths(checkpoint).positions
    assert twin.num_parameters() - positions < 0.1 * checkpoint.parameters
    assert twin.dtype == checkpoint.dtype


def test_steps_see_the_context_announced(llama, monkeypatch):
    """The prompt of a timed prefill has `context` tokens; a timed step reads a cache as long."""
    from transformers import AutoModelForCausalLM

    calls = []
    model = AutoModelForCausalLM.from_pretrained(llama)

    def note(_, __, given):
        cache = given.get("past_key_values")
        held = cache.layers[0].max_cache_len if cache is not None else None
        calls.append((tuple(given["input_ids"].shape), held))

    model.register_forward_pre_hook(note, with_kwargs=True)
    measuring.times(model, batch=2, context=50)
    steps = measuring.WARM + measuring.STEPS
    assert calls[: 1 + measuring.PREFILLS] == [((2, 50), None)] * (1 + measuring.PREFILLS)
    assert calls[1 + measuring.PREFILLS :] == [((2, 50 - steps), 50)] + [((2, 1), 50)] * steps


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--device", "b300"], 2, "known are h200, a100, rtx4090"),
        (["--device", "h200", "--measure"], 2, "use --device cpu or cuda"),
        (["--device", "h200", "--batch", 0], 2, "--batch must be at least 1, not 0"),
        (["--device", "h200", "--context", 0], 2, "between 1 and the model's 64 positions, not 0"),
        (["--device", "h200", "--context", 65], 2, "64 positions, not 65"),
        (["--device", "cpu", "--context", 1, "--measure"], 2, "2 tokens or more, not 1"),
        (["--device", "h200", "--before", "nowhere"], 2, "no folder 'nowhere'"),
    ],
)
def test_bad_options(llama, quick_ceilings, capsys, arguments, code, message):
    assert stage("estimate", llama, *arguments) == code
    error = said(capsys)
    assert message in error and "Traceback" not in error


def test_no_checkpoint(tmp_path, capsys):
    assert stage("estimate", tmp_path) == 2
    assert "has no config.json" in said(capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(llama, capsys):
    assert stage("estimate", llama, "--device", "cuda") == 4
    assert "'cuda' cannot be used" in said(capsys)


def test_too_little_memory_to_measure(llama, quick_ceilings, monkeypatch, capsys):
    memory = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert stage("estimate", llama, "--device", "cpu", "--context", 8, "--measure") == 4
    assert "leave --measure out" in said(capsys)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0, "B", "0"),
        (512, "B", "512 B"),
        (2_200_121_608, "B", "2.20 GB"),
        (999_600, "", "1.00 M"),
        (1.31e-5, "s", "13.1 us"),
        (0.25, "s", "250 ms"),
        (2.5e16, "", "25.0 P"),
    ],
)
def test_numbers_in_tables(value, unit, shown):
    assert scaled(value, unit) == shown
