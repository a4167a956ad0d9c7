"""Costs by width: against counts by hand, cut models, a clock of known pace, and as a `--budget`."""

import json
from itertools import pairwise
from types import SimpleNamespace

import psutil
import pytest
import torch
from jobs import compress, said, stage

from compressor.analysis.estimate import estimate, measuring, timed_widths
from compressor.analysis.estimate.by_width import table
from compressor.errors import InputError, MachineError
from compressor.model.checkpoint import Checkpoint
from compressor.model.groups import GROUPS
from compressor.planning.budget import PARTS, interpolated, table_of
from compressor.planning.costs import CLOSE
from compressor.planning.lattice import lattice


def cost(found: dict, group: str, width: int) -> float:
    return interpolated(sorted((int(n), c) for n, c in found[group].items()), width)


def whole(found: dict, checkpoint: Checkpoint) -> float:
    """What the model takes by the table, in milliseconds."""
    blocks = (cost(found, g, units[g]) for units in checkpoint.block_units for g in GROUPS)
    return found["other"] + sum(blocks)


@pytest.fixture(autouse=True)
def no_repeats(monkeypatch):
    monkeypatch.setattr(timed_widths, "ROUNDS", 1)
    monkeypatch.setattr(timed_widths, "SECONDS", 0.0)


@pytest.fixture
def quick(text_file):
    options = ["--calibration", text_file, "--length", 32, "--samples", 10, "--no-verify"]
    return [str(o) for o in (*options, "--method", "random", "--repair", "none")]


def test_the_roofline_by_hand(llama):
    """32 channels in 8 heads of 4, 4 of keys; 48 FFN channels; float32; bound by 4.8 TB/s."""
    batch, context = 2, 40
    found = table(llama, "h200", batch, context)
    assert list(found["attention"]) == ["1", "2", "3", "4"]
    assert list(found["ffn"]) == ["2", "6", "12", "16", "22", "26", "32", "36", "42", "48"]
    for n, ms in found["attention"].items():
        query, key_value = 8 * int(n), 4 * int(n)
        weights = 2 * 32 * (query + key_value) + 2 * 32
        each = 2 * key_value * (context + 1) + 4 * 32 + 4 * query + 2 * key_value
        assert ms == pytest.approx(1e3 * 4 * (weights + batch * each) / 4.8e12, rel=1e-12)
    for n, ms in found["ffn"].items():
        assert ms == pytest.approx(1e3 * 4 * 3 * int(n) * (32 + batch) / 4.8e12, rel=1e-12)
    ends = batch * 2 * 32 + 120 * 32 + 32 + batch * (32 + 120)
    assert found["other"] == pytest.approx(1e3 * 4 * ends / 4.8e12, rel=1e-12)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_the_table_is_the_estimate_of_whole_and_of_cut_models(any_family, quick, tmp_path, phase):
    before = Checkpoint(any_family)
    layout = "per-layer" if before.family.ffn_fixed else "uniform"
    given = ["--keep-blocks", "0.6", "--layout", layout, *quick]
    if before.family.container and before.family.container.zeros:
        given += ["--container", before.family.model_type]  # the other one adds biases
    assert compress(any_family, tmp_path / "small", *given) == 0
    after = Checkpoint(tmp_path / "small")
    assert after.units["ffn"] < before.units["ffn"]
    found = table(any_family, "h200", context=30, phase=phase)
    for checkpoint in (before, after):
        expected = estimate(checkpoint.path, device="h200", context=30)["models"][0]
        assert {row[f"{phase}_bound"] for row in expected["parts"]} == {"memory"}
        seconds = expected["total"][f"{phase}_seconds"]
        assert whole(found, checkpoint) == pytest.approx(1e3 * seconds, rel=1e-12)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_clock_of_known_pace(llama, monkeypatch, phase):
    """3 s a KV group, half a second an FFN channel, 7 and 11 s before and after the blocks."""
    passed = [0.0]
    make = timed_widths.shortened

    def paced(*given):
        model = make(*given)

        def takes(module, seconds) -> None:
            def hook(*_):
                passed[0] += seconds()

            module.register_forward_hook(hook)

        takes(model.model.embed_tokens, lambda: 7)
        takes(model.lm_head, lambda: 11)
        for layer in model.model.layers:
            takes(layer.self_attn, lambda own=layer.self_attn.k_proj: len(own.weight) / 4 * 3)
            takes(layer.mlp, lambda own=layer.mlp.up_proj: len(own.weight) / 2)
        return model

    monkeypatch.setattr(timed_widths, "shortened", paced)
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: passed[0]))
    found = table(llama, "cpu", batch=2, context=9, phase=phase, clock=True)
    assert found["attention"] == {str(n): 3e3 * n for n in (1, 2, 3, 4)}
    assert found["ffn"] == {n: 500.0 * int(n) for n in found["ffn"]} and "48" in found["ffn"]
    assert found["other"] == 18e3


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_every_family_is_timed(every_family, tmp_path, phase):
    """And --budget takes the table, also where only all heads can stay."""
    checkpoint = Checkpoint(every_family)
    if checkpoint.family.experts:
        with pytest.raises(InputError, match="are experts, which cost no time"):
            table(every_family, "cpu", context=12, phase=phase)
        return
    if checkpoint.mixed:
        with pytest.raises(InputError, match="are of several kinds"):
            table(every_family, "cpu", context=12, phase=phase)
        return
    found = table(every_family, "cpu", context=12, phase=phase, clock=True)
    allowed = lattice(checkpoint)
    assert [int(n) for n in found["attention"]] == allowed.attention
    assert {int(n) for n in found["ffn"]} <= set(allowed.ffn)
    for group in GROUPS:
        costs = [*found[group].values()]
        assert costs[0] > 0 and all(a <= b for a, b in pairwise(costs))
    assert found["other"] > 0
    assert found["about"]["phase"] == phase and found["about"]["context"] == 12
    path = tmp_path / "table.json"
    path.write_text(json.dumps(found))
    _, rest, _ = table_of(path, checkpoint)
    assert rest == pytest.approx(PARTS * found["other"] / whole(found, checkpoint), abs=1)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["gemma2", "gpt2", "gpt_neox", "llama", "phi3"])
def test_timed_blocks_are_as_narrow_as_cut_ones(random_family, name):
    checkpoint = Checkpoint(random_family(name))
    groups, chosen = lattice(checkpoint).attention[0], [0, 2]
    model = timed_widths.shortened(checkpoint, chosen)
    kinds = getattr(checkpoint.model_config(), "layer_types", None)
    assert getattr(model.config, "layer_types", None) == (kinds and [kinds[b] for b in chosen])
    layers = model.get_submodule(checkpoint.family.layers)
    assert len(layers) == 2
    timed_widths.narrow(layers, checkpoint, {"attention": groups, "ffn": 8})
    for layer in layers:
        weights = dict(layer.named_parameters())
        for group, units in (("attention", groups), ("ffn", 8)):
            for part in checkpoint.family.groups()[group]:
                if part.tensor in weights:
                    width = units * part.size(checkpoint.channel_sizes)
                    assert weights[part.tensor].shape[part.axis] == width
    assert model.eval()(input_ids=torch.tensor([[1, 2, 3]])).logits.isfinite().all()


@pytest.mark.parametrize("given", [["--device", "a100"], ["--device", "cpu", "--measure"]])
def test_a_cut_within_a_table(make_checkpoint, quick, tmp_path, capsys, given):
    """Of a model that is large enough for a clock to see its FFN."""
    sizes = {"hidden_size": 128, "intermediate_size": 2048, "max_position_embeddings": 256}
    model = make_checkpoint(tmp_path / "model", **sizes)
    path, small = tmp_path / "table.json", tmp_path / "small"
    path.write_text("what was there")
    assert stage("estimate", model, "--costs", path, "--phase", "prefill", *given) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "prefill, ms a block" in shown and f"--budget {path}" in shown
    assert compress(model, small, "--keep", "0.8", "--budget", path, *quick) == 0
    found = json.loads(path.read_text())
    before, after = (whole(found, Checkpoint(folder)) for folder in (model, small))
    # Blocks are of one width, a multiple of 32 at most, whose next one can cost more than CLOSE by a
    # clock.
    steps = (cost(found, "ffn", n) - cost(found, "ffn", n - 32) for n in range(64, 2049, 32))
    most = max(CLOSE, 3 * max(steps) / before)
    assert after / before == pytest.approx(0.8, abs=most)
    assert found["about"]["blocks"] == 3 and found["about"]["dtype"] == "float32"


def test_json_is_what_is_written(llama, tmp_path, capsys):
    given = ["--device", "h200", "--phase", "prefill", "--costs", tmp_path / "t.json", "--json"]
    assert stage("estimate", llama, *given) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "t.json").read_text())


def test_noise_is_removed_or_named():
    assert timed_widths.rising({8: 2.0, 4: 3.0, 16: 5.0}, "ffn") == {4: 3.0, 8: 3.0, 16: 5.0}
    with pytest.raises(MachineError, match=r"attention of 1 units took -0\.5000 ms"):
        timed_widths.rising({1: -0.0005, 2: 1.0}, "attention")


@pytest.mark.parametrize(
    ("items", "most", "found"),
    [
        (range(1, 5), 10, [1, 2, 3, 4]),
        ([7], 10, [7]),
        (range(10), 4, [0, 3, 6, 9]),
        (range(26), 6, [0, 5, 10, 15, 20, 25]),
    ],
)
def test_even_distances(items, most, found):
    assert timed_widths.spread(items, most) == found


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--costs", "t.json", "--phase", "both"], 2, "--phase is decode or prefill, not 'both'"),
        (["--costs", "t.json", "--device", "h200", "--measure"], 2, "use --device cpu or cuda"),
        (["--costs", "t.json", "--device", "h200", "--batch", 0], 2, "at least 1, not 0"),
        (["--costs", "t.json", "--context", 65], 2, "64 positions, not 65"),
        (["--costs", "t.json", "--context", 1, "--measure"], 2, "2 tokens or more, not 1"),
        (["--costs", "t.json", "--before", "x"], 2, "without --before"),
        (["--costs", "nowhere/t.json"], 2, "There is no folder"),
        (["--phase", "decode"], 2, "--phase says what --costs are of"),
    ],
)
def test_bad_options(llama, tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert stage("estimate", llama, *arguments) == code
    error = said(capsys)
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "t.json").exists()


def test_models_without_one_table(llama, quick, tmp_path, capsys):
    """Whose blocks differ, or are packed."""
    unequal = tmp_path / "unequal"
    given = ["--keep", "0.8", "--layout", "per-layer", "--protect", "0", *quick]
    assert compress(llama, unequal, *given) == 0
    packed = tmp_path / "packed"
    packed.mkdir()
    config = json.loads((llama / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    (packed / "config.json").write_text(json.dumps(config))
    for folder, message in ((unequal, "have widths of their own"), (packed, "quantised weights")):
        assert stage("estimate", folder, "--costs", tmp_path / "t.json", "--device", "h200") == 2
        assert message in said(capsys)


def test_too_little_memory_to_measure(llama, tmp_path, monkeypatch, capsys):
    memory = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert (
        stage("estimate", llama, "--device", "cpu", "--measure", "--costs", tmp_path / "t.json")
        == 4
    )
    assert "leave --measure out" in said(capsys)
