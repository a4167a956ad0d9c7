"""Blocks of different widths: written, loaded with the shipped code, refused without, read again."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from unequal import WIDTHS, plan_of, written

from compressor.analysis.estimate.measuring import measure
from compressor.analysis.inspection import inspect
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.per_layer import CODE, KEY
from compressor.model.stream import BlockStream
from compressor.model.tensors import SINGLE
from compressor.model.widths import model_widths
from compressor.planning.costs import Costs
from compressor.planning.plan import Plan
from compressor.verification.child import verify_here
from compressor.verification.verify import verify
from compressor.writing.cuts import write

IDS = torch.arange(3, 23)[None]


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS).logits


@pytest.mark.parametrize("ratio", WIDTHS)
def test_it_computes_what_the_padded_layout_does(any_unequal, tmp_path, ratio):
    plan = plan_of(ratio)
    unequal = written(any_unequal, tmp_path / "unequal", plan)
    padded = written(any_unequal, tmp_path / "padded", plan, "padded")
    model, found = AutoModelForCausalLM.from_pretrained(
        unequal, trust_remote_code=True, output_loading_info=True
    )
    assert not any(found.values())
    reference = logits(AutoModelForCausalLM.from_pretrained(padded).eval())
    torch.testing.assert_close(logits(model.eval()), reference, rtol=1e-4, atol=1e-5)
    model.set_attn_implementation("eager")
    assert {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")} >= {
        "eager"
    }
    torch.testing.assert_close(logits(model), reference, rtol=1e-4, atol=1e-5)
    source = Checkpoint(any_unequal)
    family, queries = source.family, source.channel_sizes["q"]
    layers = model.get_submodule(family.layers)
    for layer, (attention, ffn) in zip(layers, WIDTHS[ratio], strict=True):
        assert layer.get_parameter(family.output("attention")).shape[1] == queries * len(attention)
        assert layer.get_parameter(family.output("ffn")).shape[1] == len(ffn)


def test_generation_with_every_cache(any_unequal, tmp_path):
    model = load(written(any_unequal, tmp_path / "unequal"))
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(IDS[:, :6], use_cache=False, **options)
    assert plain.shape == (1, 18)
    for cache in ("dynamic", "static"):
        assert torch.equal(model.generate(IDS[:, :6], cache_implementation=cache, **options), plain)


def test_without_its_code_it_does_not_load(any_unequal, tmp_path):
    unequal = written(any_unequal, tmp_path / "unequal")
    with pytest.raises(
        RuntimeError, match=r"per-layer attribute and may vary|thus raising an error"
    ):
        AutoModelForCausalLM.from_pretrained(unequal)
    # Older versions read the widest widths and find tensors of other shapes.
    config = json.loads((unequal / "config.json").read_text())
    del config[KEY], config["auto_map"]
    (unequal / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForCausalLM.from_pretrained(unequal)


@pytest.mark.fresh_process
def test_it_passes_verification_in_a_fresh_process(unequal, llama):
    report = verify(unequal, llama)
    assert report["class"] == "PerLayerMistralForCausalLM"
    assert report["logits_difference"] <= 1e-3
    assert report["parameters"] == Checkpoint(unequal).parameters == inspect(unequal)["parameters"]


@pytest.mark.parametrize("where", ["changed", "beside"])
def test_code_that_is_not_ours_is_not_run(unequal, where):
    code = unequal / (CODE.name if where == "changed" else "modeling_other.py")
    code.write_text(f"raise SystemExit('run')\n{CODE.read_text()}")
    if where == "beside":
        config = (unequal / "config.json").read_text()
        (unequal / "config.json").write_text(config.replace(CODE.stem, code.stem))
    for use in (verify_here, lambda folder: measure(Checkpoint(folder), "cpu", 1, 4)):
        with pytest.raises(InputError, match="is not what this package writes, so it is not run"):
            use(unequal)
    answers = {row["target"]: row for row in inspect(unequal)["loads"]}
    assert answers["transformers, trust_remote_code"]["loads"] is None
    BlockStream(Checkpoint(unequal))  # by the package's own class


def test_it_is_read_like_any_checkpoint(any_unequal, tmp_path):
    unequal = written(any_unequal, tmp_path / "unequal")
    checkpoint, plan = Checkpoint(unequal), plan_of("0.7")
    assert checkpoint.block_units == plan.widths()
    assert checkpoint.units == {"attention": 4, "ffn": 48}
    assert (
        checkpoint.parameters
        == sum(t.numel() for t in load_file(unequal / SINGLE).values())
        == Costs.of(Checkpoint(any_unequal)).size(plan.widths(), "params")
    )
    (streamed,) = BlockStream(checkpoint).logits([IDS])
    torch.testing.assert_close(streamed, logits(load(unequal)))
    blocks = model_widths(checkpoint).blocks
    assert [(b.kv_heads, b.ffn) for b in blocks] == [(3, 20), (4, 32), (1, 48)]
    assert all(b.heads == b.kv_heads * checkpoint.queries_per_group for b in blocks)
    source = model_widths(Checkpoint(any_unequal)).blocks
    assert [b.window for b in blocks] == [b.window for b in source]


def test_what_is_said_of_it(unequal):
    result = inspect(unequal)
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


def test_transformers_saves_what_it_loaded(unequal, tmp_path):
    model = load(unequal)
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
        ({"0": {"intermediate_size": 24}}, r"\[32, 20\], but the config implies \[32, 24\]"),
    ],
)
def test_entries_that_cannot_be(unequal, tmp_path, entries, words):
    config = json.loads((unequal / "config.json").read_text())
    if isinstance(entries, list):
        config[KEY] = entries
    else:
        for block, entry in entries.items():
            config[KEY][block] = config[KEY].get(block, {}) | entry
    (unequal / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=words):
        Checkpoint(unequal)
    assert inspect(unequal)["problems"]


def test_disagreeing_entries_name_the_block(unequal):
    config = json.loads((unequal / "config.json").read_text())
    config[KEY]["1"]["intermediate_size"] = 20
    (unequal / "config.json").write_text(json.dumps(config))
    assert inspect(unequal)["problems"] == [
        "The config says intermediate_size 20 to 48, the tensors 20 to 48 (block 1 first); the "
        "tensors are believed."
    ]


def test_biases_that_no_container_has(make_checkpoint, tmp_path):
    source = make_checkpoint(tmp_path / "biased", attention_bias=True)
    with pytest.raises(InputError, match="mistral has no biases"):
        write(Checkpoint(source), plan_of("0.7"), tmp_path / "out", "per-layer")
    assert not (tmp_path / "out").exists()
