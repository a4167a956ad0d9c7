"""Blocks of different widths: written, loaded with the shipped code, refused without, read again."""

import json
from pathlib import Path

import pytest
import torch
from jobs import compress, said, stage
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compressor.blocks import BlockStream
from compressor.calibration import tokenize
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.estimate import estimate
from compressor.estimate.measuring import measure
from compressor.inspection import inspect
from compressor.methods import METHODS
from compressor.per_layer import CODE, KEY
from compressor.plan import Costs, Plan
from compressor.report import write_record
from compressor.result import make_record
from compressor.scoring import score
from compressor.tensors import SINGLE
from compressor.texts import read_text
from compressor.verify import verify, verify_here
from compressor.widths import model_widths
from compressor.writing import write

IDS = torch.arange(3, 23)[None]
# Of 4 KV groups and 48 channels; in the second no block has all of either.
WIDTHS = {
    "0.7": [([0, 2, 3], range(20)), ([0, 1, 2, 3], range(3, 35)), ([1], range(48))],
    "0.5": [([2], range(8, 24)), ([0, 1, 3], range(4)), ([0, 3], range(40))],
}


def plan_of(name: str) -> Plan:
    blocks = [{"attention": a, "ffn": [*f]} for a, f in WIDTHS[name]]
    return Plan(blocks, {"scores": {}})


def written(source, folder, plan=None, layout="per-layer"):
    checkpoint, plan = Checkpoint(source), plan or plan_of("0.7")
    chosen = write(checkpoint, plan, folder, layout)
    write_record(folder, make_record(checkpoint, plan, layout, chosen))
    return folder


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS).logits


@pytest.fixture
def small(llama, tmp_path):
    return written(llama, tmp_path / "small")


@pytest.mark.parametrize("ratio", WIDTHS)
def test_it_computes_what_the_padded_layout_does(any_unequal, tmp_path, ratio):
    plan = plan_of(ratio)
    small = written(any_unequal, tmp_path / "small", plan)
    padded = written(any_unequal, tmp_path / "padded", plan, "padded")
    model, found = AutoModelForCausalLM.from_pretrained(
        small, trust_remote_code=True, output_loading_info=True
    )
    assert not any(found.values())
    reference = logits(AutoModelForCausalLM.from_pretrained(padded).eval())
    torch.testing.assert_close(logits(model.eval()), reference, rtol=1e-4, atol=1e-5)
    model.set_attn_implementation("eager")
    assert {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")} >= {
        "eager"
    }
    torch.testing.assert_close(logits(model), reference, rtol=1e-4, atol=1e-5)
    family = Checkpoint(small).family
    layers = model.get_submodule(family.layers)
    for layer, (attention, ffn) in zip(layers, WIDTHS[ratio], strict=True):
        assert layer.get_parameter(family.output("attention")).shape[1] == 8 * len(attention)
        assert layer.get_parameter(family.output("ffn")).shape[1] == len(ffn)


def test_generation_with_every_cache(any_unequal, tmp_path):
    model = load(written(any_unequal, tmp_path / "small"))
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(IDS[:, :6], use_cache=False, **options)
    assert plain.shape == (1, 18)
    for cache in ("dynamic", "static"):
        assert torch.equal(model.generate(IDS[:, :6], cache_implementation=cache, **options), plain)


def test_without_its_code_it_does_not_load(any_unequal, tmp_path):
    small = written(any_unequal, tmp_path / "small")
    with pytest.raises(
        RuntimeError, match=r"per-layer attribute and may vary|thus raising an error"
    ):
        AutoModelForCausalLM.from_pretrained(small)
    # Older versions read the widest widths and find tensors of other shapes.
    config = json.loads((small / "config.json").read_text())
    del config[KEY], config["auto_map"]
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForCausalLM.from_pretrained(small)


def test_it_passes_verification_in_a_fresh_process(small, llama):
    report = verify(small, llama)
    assert report["class"] == "PerLayerMistralForCausalLM"
    assert report["logits_difference"] <= 1e-3
    assert report["parameters"] == Checkpoint(small).parameters == inspect(small)["parameters"]


@pytest.mark.parametrize("where", ["changed", "beside"])
def test_code_that_is_not_ours_is_not_run(small, where):
    code = small / (CODE.name if where == "changed" else "modeling_other.py")
    code.write_text(f"raise SystemExit('run')\n{CODE.read_text()}")
    if where == "beside":
        config = (small / "config.json").read_text()
        (small / "config.json").write_text(config.replace(CODE.stem, code.stem))
    for use in (verify_here, lambda folder: measure(Checkpoint(folder), "cpu", 1, 4)):
        with pytest.raises(InputError, match="is not what this package writes, so it is not run"):
            use(small)
    answers = {row["target"]: row for row in inspect(small)["loads"]}
    assert answers["transformers, trust_remote_code"]["loads"] is None
    BlockStream(Checkpoint(small))  # by the package's own class


def test_it_is_read_like_any_checkpoint(any_unequal, tmp_path):
    small = written(any_unequal, tmp_path / "small")
    checkpoint, plan = Checkpoint(small), plan_of("0.7")
    assert checkpoint.block_units == plan.widths()
    assert checkpoint.units == {"attention": 4, "ffn": 48}
    assert (
        checkpoint.parameters
        == sum(t.numel() for t in load_file(small / SINGLE).values())
        == Costs.of(Checkpoint(any_unequal)).size(plan.widths(), "params")
    )
    (streamed,) = BlockStream(checkpoint).logits([IDS])
    torch.testing.assert_close(streamed, logits(load(small)))
    blocks = model_widths(checkpoint).blocks
    assert [(b.kv_heads, b.ffn) for b in blocks] == [(3, 20), (4, 32), (1, 48)]
    assert all(b.heads == b.kv_heads * checkpoint.queries_per_group for b in blocks)
    source = model_widths(Checkpoint(any_unequal)).blocks
    assert [b.window for b in blocks] == [b.window for b in source]


def test_what_is_said_of_it(small):
    result = inspect(small)
    assert result["layout"] == "per-layer" and result["problems"] == []
    assert [row["ffn"] for row in result["blocks"]] == [20, 32, 48]
    answers = {row["target"]: (row["loads"], row["because"]) for row in result["loads"]}
    for target, (answer, because) in answers.items():
        assert answer == ("trust_remote_code" in target), (target, because)
    assert sum("trust_remote_code" in target for target in answers) == 2
    assert answers["vLLM, tensor parallel 1"][1].startswith("the blocks have 3 different widths")


def test_equal_blocks_are_uniform_and_a_full_head_count_keeps_its_type(llama, tmp_path):
    checkpoint = Checkpoint(llama)
    same = Plan([{"attention": [0, 1], "ffn": [*range(24)]}] * 3)
    assert write(checkpoint, same, tmp_path / "same", "per-layer") == "llama"
    assert not (tmp_path / "same" / CODE.name).exists()
    AutoModelForCausalLM.from_pretrained(tmp_path / "same")
    ffn = Plan([{"attention": [*range(4)], "ffn": [*range(n)]} for n in (12, 48, 20)])
    assert write(checkpoint, ffn, tmp_path / "ffn", "per-layer") == "llama"
    model = load(tmp_path / "ffn")
    assert type(model).__name__ == "PerLayerLlamaForCausalLM"
    write(checkpoint, ffn, tmp_path / "padded", "padded")
    reference = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "padded").eval())
    torch.testing.assert_close(logits(model), reference, rtol=1e-4, atol=1e-5)


def test_transformers_saves_what_it_loaded(small, tmp_path):
    model = load(small)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again")), logits(model))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([1, 2], "is no object of blocks"),
        ({"3": {"intermediate_size": 8}}, "names the block '3'; the model has 3"),
        ({"first": {}}, "names the block 'first'"),
        ({"0": {"sliding_window": 8}}, "gives block 0 the sliding_window 8; blocks can differ in"),
        ({"0": {"skip": ["mlp"]}}, r"gives block 0 the skip \['mlp'\]"),
        ({"1": {"intermediate_size": 0}}, "gives block 1 the intermediate_size 0"),
        ({"0": {"intermediate_size": 24}}, r"\[20, 32\], but the config implies \[24, 32\]"),
    ],
)
def test_entries_that_cannot_be(small, tmp_path, entries, words):
    config = json.loads((small / "config.json").read_text())
    if isinstance(entries, list):
        config[KEY] = entries
    else:
        for block, entry in entries.items():
            config[KEY][block] = config[KEY].get(block, {}) | entry
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=words):
        Checkpoint(small)
    assert inspect(small)["problems"]


def test_disagreeing_entries_name_the_block(small):
    config = json.loads((small / "config.json").read_text())
    config[KEY]["1"]["intermediate_size"] = 20
    (small / "config.json").write_text(json.dumps(config))
    assert inspect(small)["problems"] == [
        "The config says intermediate_size 20 to 48, the tensors 20 to 48 (block 1 first); the "
        "tensors are believed."
    ]


def test_biases_that_no_container_has(make_checkpoint, tmp_path):
    source = make_checkpoint(tmp_path / "biased", attention_bias=True)
    with pytest.raises(InputError, match="mistral has no biases"):
        write(Checkpoint(source), plan_of("0.7"), tmp_path / "out", "per-layer")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def quick(text_file) -> list:
    return ["--calibration", text_file, "--length", 32, "--samples", 6]


def test_the_whole_job_goes_on_where_it_was_killed(
    llama, quick, text_file, tmp_path, capsys, monkeypatch
):
    asked = ["--keep", 0.7, "--allocate", "global", "--layout", "per-layer", *quick]
    asked += ["--evaluation", text_file, "--json"]
    assert compress(llama, tmp_path / "whole", *asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layout"] == "per-layer" and found["container"] == "mistral"
    assert found["verified"].startswith("logits within") and found["perplexity_after"] > 1
    assert found["parameters_after"] == Checkpoint(tmp_path / "whole").parameters
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "trust_remote_code=True" in card and CODE.name in card

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("compressor.result.draw", killed)
    asked += ["--no-verify"]
    assert compress(llama, tmp_path / "again", *asked) == 130
    monkeypatch.undo()
    assert compress(llama, tmp_path / "again", *asked, "--resume") == 0
    for file in (SINGLE, "config.json", CODE.name):
        again, whole = (tmp_path / name / file for name in ("again", "whole"))
        assert again.read_bytes() == whole.read_bytes()


def test_all_layouts_of_one_scoring(llama, quick, text_file, tmp_path, capsys, monkeypatch):
    def first(stream, plans, *_) -> dict[str, float]:
        return {name: float(i) for i, name in enumerate(plans)}

    monkeypatch.setattr("compressor.planning.judge", first)
    options = ["--layout", "all", "--no-verify", *quick, "--evaluation", text_file, "--json"]
    asked = ["--keep-blocks", 0.6, "--allocate", "exact", "--repair", "none"]
    assert compress(llama, tmp_path / "all", *asked, *options) == 0
    found = {r["layout"]: r for r in json.loads(capsys.readouterr().out)}
    names = {Path(r["dest"]).name for r in found.values()}
    assert names == {f"keep-blocks-0.6-{layout}" for layout in ("uniform", "per-layer", "padded")}
    own, padded = found["per-layer"], found["padded"]
    assert own["perplexity_after"] == pytest.approx(padded["perplexity_after"], rel=1e-5)
    assert own["parameters_after"] < padded["parameters_after"]
    assert found["uniform"]["parameters_after"] <= 1.1 * own["parameters_after"]
    options = ["--keep", 0.7, "--protect", 0, *options]
    assert compress(llama, tmp_path / "protected", *options) == 0
    assert [r["layout"] for r in json.loads(capsys.readouterr().out)] == ["per-layer", "padded"]


@pytest.mark.parametrize(
    ("sizes", "options", "words"),
    [
        ({"attention_bias": True}, [], "refuses numbers of heads that differ"),
        ({}, ["--container", "llama"], "leave --container out"),
        ({}, ["--quantize", "w4a16", "--quantize-group", 4], "leave one out"),
    ],
)
def test_refused_before_it_begins(make_checkpoint, tmp_path, capsys, sizes, options, words):
    source = make_checkpoint(tmp_path / "source", **sizes)
    asked = ["--keep", 0.7, "--protect", 0, "--layout", "per-layer", *options]
    assert compress(source, tmp_path / "out", *asked) == 2
    assert words in said(capsys)


CUTS = {
    "uniform": [],
    "global": ["--allocate", "global", "--layout", "per-layer"],
    "exact": ["--allocate", "exact", "--layout", "per-layer"],
    "besa": ["--allocate", "besa", "--layout", "per-layer"],
    "protected": ["--protect", "1", "--layout", "padded"],
    "selected": ["--kv-cost", "measured", "--select", "obs"],
}


@pytest.mark.parametrize("how", CUTS)
def test_it_is_cut_again(small, quick, tmp_path, capsys, monkeypatch, how):
    """Against the masked source: blocks of all widths, by their own."""
    monkeypatch.setattr("compressor.allocation.besa.STEPS", 2)
    dest = tmp_path / "again"
    method = "hywia" if how == "global" else "llm-bip"
    keep = 0.75 if "--layout" in CUTS[how] else 0.65  # the narrowest block everywhere leaves 0.675
    asked = ["--keep", keep, "--method", method, "--align", 4, *CUTS[how], *quick]
    assert compress(small, dest, *asked, "--no-verify", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert verify_here(dest, small)["logits_difference"] <= 1e-3
    assert found["keep_reached"] <= keep
    checkpoint, before = Checkpoint(dest), Checkpoint(small).block_units
    if how != "protected":
        assert checkpoint.parameters == round(found["keep_reached"] * Checkpoint(small).parameters)
        assert all(
            new[g] <= old[g]
            for new, old in zip(checkpoint.block_units, before, strict=True)
            for g in old
        )
    if "--layout" not in CUTS[how]:
        assert not (dest / CODE.name).exists()
        AutoModelForCausalLM.from_pretrained(dest)


def test_more_than_equal_widths_leave_is_refused(small, quick, tmp_path, capsys):
    assert compress(small, tmp_path / "again", "--keep", 0.75, "--align", 4, *quick) == 2
    assert "more than equal widths leave" in said(capsys)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_scores_blocks_of_their_own_widths(small, text_file, method):
    checkpoint = Checkpoint(small)
    tokens = tokenize(read_text(str(text_file)), checkpoint.tokenizer(), 24, 3)
    scores = score(checkpoint, method, None, tokens, BlockStream(checkpoint))
    found = [{g: len(values) for g, values in block.items()} for block in scores.blocks]
    assert found == checkpoint.block_units


def test_equal_widths_that_a_narrow_block_has_not(small, quick, tmp_path, capsys):
    assert compress(small, tmp_path / "out", "--keep", 0.9, "--align", 24, *quick) == 2
    message = said(capsys)
    assert "begin with 1 KV groups and 24 FFN channels, and a block has 1 and 20" in message


@pytest.mark.parametrize(
    "options", [["--granularity", "weight", "--sparsity", 0.5], ["--quantize", "w4a16"]]
)
def test_what_takes_equal_blocks_says_so(small, tmp_path, capsys, options):
    assert compress(small, tmp_path / "out", *options) == 2
    assert "takes checkpoints of equal blocks" in said(capsys)


def test_it_is_recovered(small, quick, tmp_path, capsys):
    dest = tmp_path / "recovered"
    options = ["--recover", "lora", "--recover-steps", 4, "--recover-batch", 2]
    asked = ["recover", small, dest, *quick[:4], *options]
    assert stage(*asked) in (0, 3)
    if dest.exists():
        assert (dest / CODE.name).read_bytes() == CODE.read_bytes()
        assert Checkpoint(dest).block_units == Checkpoint(small).block_units


def test_what_it_costs(small):
    model = estimate(small, device="h200", context=32)["models"][0]
    assert [row["ffn"] for row in model["parts"][1:-1]] == [20, 32, 48]
    assert model["total"]["parameters"] == Checkpoint(small).parameters
