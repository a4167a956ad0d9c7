"""Models of texts and images: their language model is cut, and all else goes along."""

import json
from functools import cache

import pytest
import torch
from jobs import compress
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
from unequal import written
from wrappers import KINDS, make_wrapper, picture

from compressor.analysis.doctor import examine
from compressor.analysis.inspection import inspect
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.families.wrappers import WRAPPERS
from compressor.model.loaded_model import LoadedModel
from compressor.model.stream import BlockStream
from compressor.planning.costs import Costs
from compressor.planning.plan import Plan
from compressor.verification.child import verify_here
from compressor.writing.cuts import write, writer_of
from compressor.writing.in_memory import build

IDS = torch.arange(3, 40)[None]
QUICK = ("gemma3", "llava", "qwen2_vl")
FILE = "model.safetensors"


def kinds() -> list:
    return [k if k in QUICK else pytest.param(k, marks=pytest.mark.breadth) for k in sorted(KINDS)]


@pytest.fixture(scope="module")
def made(tmp_path_factory, llama):
    """The folder of a kind, made once."""
    return cache(lambda kind: make_wrapper(tmp_path_factory.mktemp(kind) / "model", kind, llama))


@pytest.fixture
def small(tmp_path, llama):
    """One of two blocks for this test alone, with what its language model has of its own."""
    return lambda kind="llava", **text: make_wrapper(
        tmp_path / "model", kind, llama, num_hidden_layers=2, **text
    )


def plan_of(folder, heads=(0, 2), ffn=20) -> Plan:
    source = Checkpoint(folder)
    kept = [*heads] if cuts_heads(source) else [*range(source.units["attention"])]
    ffn = 4 if source.family.experts else ffn
    blocks = [
        {"attention": kept[: units["attention"]], "ffn": [*range(ffn)]}
        for units in source.block_units
    ]
    return Plan(blocks, {"scores": {}})


def cuts_heads(source: Checkpoint) -> bool:
    """Whether heads go here: of a mixture whole experts do, and heads stay."""
    return source.family.cuts_heads and source.family.experts is None


@torch.no_grad()
def loaded(folder):
    """The model by its own class, of which nothing is missing or left over."""
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def text_of(config: dict) -> dict:
    return config["text_config"]


def read(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_every_wrapper_is_tried():
    assert set(KINDS) == set(WRAPPERS)


@pytest.mark.parametrize("kind", kinds())
@torch.no_grad()
def test_the_language_model_is_cut_and_all_else_stays(made, tmp_path, kind):
    source = made(kind)
    expected = loaded(source)(input_ids=IDS).logits
    (streamed,) = BlockStream(Checkpoint(source)).logits([IDS])
    torch.testing.assert_close(streamed, expected, atol=1e-5, rtol=0)
    out = written(source, tmp_path / "out", plan_of(source), "uniform")
    report = verify_here(out, source)
    assert report["class"] == WRAPPERS[kind].architecture
    assert report["logits_difference"] <= 1e-5
    before, after = load_file(source / FILE), load_file(out / FILE)
    beside, mixture = Checkpoint(source).side, Checkpoint(source).family.experts
    gone = {n for n in before if mixture and (".experts.4." in n or ".experts.5." in n)}
    assert beside and before.keys() - gone == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in beside)
    assert mixture or sum(after[name].numel() < before[name].numel() for name in after) >= 9
    old, new = read(source), read(out)
    assert text_of(new)["num_experts" if mixture else "intermediate_size"] == (4 if mixture else 20)
    heads = 4 if cuts_heads(Checkpoint(source)) else 8
    assert text_of(new)["num_attention_heads"] == heads
    assert {k: v for k, v in new.items() if k not in ("text_config", "torch_dtype")} == {
        k: v for k, v in old.items() if k != "text_config"
    }


@pytest.mark.parametrize("kind", ["gemma3", pytest.param("qwen2_vl", marks=pytest.mark.breadth)])
def test_fewer_blocks(made, kind, tmp_path, text_file):
    """A block of the language model goes, and its layer types with it; the verification is exact."""
    source, out = made(kind), tmp_path / "out"
    given = ["--calibration", text_file, "--length", 32, "--samples", 4, "--drop-blocks", 1]
    assert compress(source, out, *given) == 0
    had, has = text_of(read(source)), text_of(read(out))
    assert has["num_hidden_layers"] == had["num_hidden_layers"] - 1
    assert len(has.get("layer_types", [])) in (0, has["num_hidden_layers"])
    loaded(out)


@pytest.mark.parametrize("kind", QUICK)
@torch.no_grad()
def test_images_still_pass(made, tmp_path, kind):
    out = written(made(kind), tmp_path / "out", plan_of(made(kind)), "uniform")
    seen = picture(kind)
    first = loaded(out)(**seen).logits
    assert first.isfinite().all()
    seen["pixel_values"] = seen["pixel_values"].flip(0, -1)
    assert not torch.equal(loaded(out)(**seen).logits, first)


@pytest.mark.parametrize(
    "kind",
    ["llava", *(pytest.param(k, marks=pytest.mark.breadth) for k in ("gemma3", "qwen3_5_moe"))],
)
def test_a_whole_job(made, kind, tmp_path, text_file, capsys):
    """Scored, repaired, trained and verified; what lies beside the weights is copied."""
    source, out = made(kind), tmp_path / "out"
    (source / "preprocessor_config.json").write_text('{"size": 8}\n')
    given = ["--keep", 0.8, "--calibration", text_file, "--length", 32, "--samples", 4]
    training = ["--recover", "lora:2", "--max-perplexity-ratio", "off", "--json"]
    assert compress(source, out, *given, *training) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["repair"] != "none" and "logits within" in result["verified"]
    assert result["parameters_before"] == Checkpoint(source).parameters
    assert result["parameters_after"] == Checkpoint(out).parameters < result["parameters_before"]
    assert (out / "preprocessor_config.json").read_text() == '{"size": 8}\n'
    assert "AutoModelForImageTextToText" in (out / "README.md").read_text()
    loaded(out)


@pytest.mark.parametrize(("inside", "heads"), [("llama", (0, 1, 3)), ("qwen2", (0, 2))])
def test_the_language_model_may_go_out_as_another_type(small, tmp_path, inside, heads):
    """Of 6 heads, which do not divide the hidden size; and of biases that Llama has and Qwen2 not."""
    source = small(model_type=inside)
    out = written(source, tmp_path / "out", plan_of(source, heads), "uniform")
    assert verify_here(out, source)["logits_difference"] <= 1e-5
    new = read(out)
    assert new["model_type"] == "llava" and new["architectures"] == [
        "LlavaForConditionalGeneration"
    ]
    assert text_of(new)["model_type"] == {"llama": "mistral", "qwen2": "llama"}[inside]
    zeros = [n for n in load_file(out / FILE) if n.endswith("o_proj.bias")]
    assert len(zeros) == (2 if inside == "qwen2" else 0)
    assert all(name.startswith("language_model.model.layers.") for name in zeros)
    again = written(out, tmp_path / "again", plan_of(out, (0,)), "uniform")
    assert verify_here(again, out)["logits_difference"] <= 1e-5


def test_names_as_other_versions_write_them(small, tmp_path):
    """`model.language_model.`, in shards, with an integer buffer beside."""
    source = small()
    tensors = {renamed(name): tensor for name, tensor in load_file(source / FILE).items()}
    tensors["model.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(tensors, source / FILE, {"format": "pt"})
    checkpoint = Checkpoint(source)
    assert checkpoint.tensors["model.norm.weight"].key == "model.language_model.norm.weight"
    write(checkpoint, plan_of(source), tmp_path / "out", shard_bytes=20_000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    again = Checkpoint(tmp_path / "out")
    assert (
        again.side["model.vision_tower.vision_model.embeddings.position_ids"].dtype == torch.int64
    )


def renamed(name: str) -> str:
    for old, new in {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head": "lm_head",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    }.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def test_a_config_without_a_part_for_the_text(small, tmp_path):
    """Qwen2-VL's on the hub: all settings at the top, and the older words for its positions."""
    source = small("qwen2_vl")
    config = read(source)
    text = config.pop("text_config")
    text.pop("model_type"), text.pop("rope_parameters"), text.pop("layer_types")
    text |= {"rope_theta": 1e4, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 0]}}
    (source / "config.json").write_text(json.dumps(config | text))
    out = written(source, tmp_path / "out", plan_of(source), "uniform")
    assert verify_here(out, source)["logits_difference"] <= 1e-5
    new = read(out)
    assert new["intermediate_size"] == 20 and "text_config" not in new
    assert new["rope_scaling"] == text["rope_scaling"] and new["model_type"] == "qwen2_vl"


@torch.no_grad()
def test_a_cap_of_logits_that_the_class_does_not_have(small):
    """Gemma 3's text model alone would have it."""
    source = small("gemma3", final_logit_softcapping=0.5)
    (streamed,) = BlockStream(Checkpoint(source)).logits([IDS])
    torch.testing.assert_close(streamed, loaded(source)(input_ids=IDS).logits, atol=1e-5, rtol=0)
    write(Checkpoint(source), plan_of(source), source.parent / "out")
    assert text_of(read(source.parent / "out"))["final_logit_softcapping"] == 0.5


@torch.no_grad()
def test_in_memory_a_result_is_the_language_model_alone(made, tmp_path):
    source = Checkpoint(made("llava"))
    alone = build(writer_of(source, plan_of(made("llava"))))
    assert type(alone).__name__ == "LlamaForCausalLM"
    write(source, plan_of(made("llava")), tmp_path / "out")
    expected = loaded(tmp_path / "out")(input_ids=IDS).logits
    torch.testing.assert_close(alone(input_ids=IDS).logits, expected, atol=1e-5, rtol=0)


def test_a_head_that_differs_from_the_embedding(small, tmp_path):
    """The files' own is used, and what is written says so where each version looks."""
    source = small()
    config = read(source)
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (source / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(source)
    assert any("tie_word_embeddings false" in note for note in checkpoint.notes)
    write(checkpoint, plan_of(source), tmp_path / "out")
    new = read(tmp_path / "out")
    assert new["tie_word_embeddings"] is new["text_config"]["tie_word_embeddings"] is False
    loaded(tmp_path / "out")


def test_a_bound_in_bytes_is_of_the_whole_folder(made):
    source = Checkpoint(made("gemma3"))
    beside = sum(entry.end - entry.begin for entry in source.side.values())
    assert Costs.of(source).added["bytes"] >= beside > 0


def test_what_it_says_of_a_wrapper(made):
    found = inspect(made("gemma3"))
    assert (found["model_type"], found["family"]) == ("gemma3", "gemma3_text")
    assert found["container"] == "Gemma3ForConditionalGeneration" and found["layout"] == "uniform"
    assert found["blocks"][0]["kv_heads"] == 4 and not found["problems"]
    assert found["parameters"] - found["beside"] == Checkpoint(made("gemma3")).parameters
    answers = {row["target"].partition(" ")[0]: row["loads"] for row in found["loads"][:1]}
    assert answers == {"transformers": True}


@pytest.mark.parametrize("layout", ["per-layer", "nas"])
def test_blocks_of_different_widths_are_refused(made, tmp_path, layout):
    plan = plan_of(made("llava"))
    plan.blocks[1] = {"attention": [0, 2], "ffn": [*range(8)]}
    with pytest.raises(InputError, match=r"inside of a llava.*; use --layout uniform, or padded"):
        write(Checkpoint(made("llava")), plan, tmp_path / "out", layout)


def test_heads_of_qwen2_vl_stay(made, tmp_path):
    plan = Plan([{"attention": [0, 1], "ffn": [*range(20)]}] * 3, {"scores": {}})
    with pytest.raises(InputError, match="heads of qwen2 cannot be cut"):
        write(Checkpoint(made("qwen2_vl")), plan, tmp_path / "out")


def test_packing_is_refused(made, tmp_path, text_file, capsys):
    given = ["--quantize", "w4a16", "--keep", 0.8, "--calibration", text_file]
    assert compress(made("llava"), tmp_path / "out", *given) == 2
    assert "inside of a llava" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["LlavaModel"]},
            "of a LlavaModel .* LlavaForConditionalGeneration is read",
        ),
        ({"text_config": {"model_type": "opt"}}, "of the type 'opt'; inside of"),
        ({"text_config": "llama"}, "no object, but 'llama'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised weights"),
    ],
    ids=str,
)
def test_others_are_refused(made, tmp_path, changes, words):
    config = read(made("llava")) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / FILE).write_bytes((made("llava") / FILE).read_bytes())
    with pytest.raises(InputError, match=words):
        Checkpoint(tmp_path)


def test_it_is_not_mended(made):
    with pytest.raises(InputError, match="which is not mended"):
        examine(made("llava"))


def test_one_in_memory_is_refused(made):
    with pytest.raises(InputError, match="of texts and images, and such models are read from"):
        LoadedModel(loaded(made("llava")))


def test_a_tensor_that_is_missing_is_named(small):
    source = small()
    tensors = load_file(source / FILE)
    tensors.pop("language_model.model.layers.1.mlp.up_proj.weight")
    save_file(tensors, source / FILE, {"format": "pt"})
    with pytest.raises(
        InputError, match=r"lacks the tensor model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        Checkpoint(source)
