"""What keeps a folder from loading, and the loaders' rules on widths and settings."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from edits import edit_config, edit_json, edit_tensors
from experts import fuse
from transformers import AutoModelForCausalLM
from wrappers import make_wrapper

from compressor.analysis.inspection import inspect
from compressor.analysis.inspection.folder import Folder
from compressor.analysis.inspection.loaders.answer import Facts, Loading
from compressor.analysis.inspection.loaders.gguf import k_quants
from compressor.analysis.inspection.loaders.kernels import four_bits
from compressor.analysis.inspection.loaders.older import rotation
from compressor.analysis.inspection.loaders.vllm import tensor_parallel
from compressor.model.widths import BlockWidths, Mixture

HERE, OLDER, VLLM, GGUF = "(installed)", "4.57", "parallel 1", "k-quants"
ALL = (HERE, OLDER, VLLM, GGUF)
FINE = Loading(None, None, tokenizer=object())


@pytest.fixture
def copy(llama, tmp_path):
    """A folder whose tokenizer 4.57 reads."""
    folder = shutil.copytree(llama, tmp_path / "copy")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    return folder


def said(folder) -> dict[str, tuple[bool | None, str]]:
    found = inspect(folder)["loads"]
    return {
        name: next((r["loads"], r["because"]) for r in found if name in r["target"]) for name in ALL
    }


def test_every_answer_says_how_it_is_known(copy):
    result = inspect(copy)
    assert all(row["because"] and row["how"] for row in result["loads"])
    how = {row["target"]: row["how"] for row in result["loads"]}
    assert how["transformers 4.57"] == "its rules, seen in 4.57.6"
    assert how["vLLM, tensor parallel 1"] == "its rules, seen in 0.32"
    assert how["vLLM, tensor parallel 2"] == "its rules"
    assert [h for target, h in how.items() if "installed" in target] == ["ran"]


@pytest.mark.parametrize(
    ("change", "because"),
    [
        (lambda t: t.pop("model.norm.weight"), "would be random: model.norm.weight"),
        (
            lambda t: t.pop("model.layers.1.input_layernorm.weight"),
            "would be random: model.layers.1.input_layernorm.weight",
        ),
        (lambda t: t.update({"v_head.weight": torch.zeros(1, 32)}), "are left out: v_head.weight"),
        (lambda t: t.update({"model.norm.weight": torch.ones(40)}), "model.norm.weight is [40]"),
    ],
)
def test_tensors_missing_left_over_or_of_another_shape(copy, change, because):
    edit_tensors(copy, change)
    for answer, reason in said(copy).values():
        assert answer is False and because in reason


def test_a_padding_id_outside_the_vocabulary(copy):
    edit_config(copy, pad_token_id=120, eos_token_id=[2, 500])
    found = said(copy)
    assert found[HERE][0] is False and "Padding_idx" in found[HERE][1]
    assert found[OLDER] == (False, "pad_token_id 120 is outside the vocabulary of 120")
    assert found[VLLM][0] is True  # whose embedding has none
    problems = inspect(copy)["problems"]
    assert "pad_token_id is 120, outside the vocabulary of 120." in problems
    assert "eos_token_id is 500, outside the vocabulary of 120." in problems


@pytest.mark.parametrize(
    ("model_type", "vllm", "because"),
    [
        ("llama", True, "LlamaForCausalLM"),
        ("gemma2", False, "its Gemma2ForCausalLM ties the head and has no lm_head.weight"),
    ],
)
def test_a_head_that_differs_from_the_embedding_it_is_tied_to(
    make_checkpoint, tmp_path, model_type, vllm, because
):
    folder = make_checkpoint(tmp_path / "m", model_type, tie_word_embeddings=True)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert inspect(folder)["problems"] == [] and said(folder)[OLDER][0]

    def add(tensors, moved=0.0):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + moved

    edit_tensors(folder, add)  # a second copy of the same
    assert inspect(folder)["problems"] == [] and said(folder)[OLDER][0]
    edit_tensors(folder, lambda tensors: add(tensors, 1.0))
    found = said(folder)
    assert found[HERE][0] is True  # it takes the files' own
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    assert found[OLDER][0] is False and "ties the head to the embedding" in found[OLDER][1]
    assert found[VLLM][0] is vllm and because in found[VLLM][1]
    assert found[GGUF][0] is False
    assert "Set tie_word_embeddings to false" in inspect(folder)["problems"][0]


def test_qwen2_that_lost_heads(make_checkpoint, tmp_path):
    """head_dim 6 where hidden size / heads is 8."""
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 6}
    found = said(make_checkpoint(tmp_path / "cut", "qwen2", **sizes))
    assert found[HERE][0] is True
    for loader in (VLLM, GGUF):
        assert found[loader][0] is False and "48 / 6 is not 6" in found[loader][1], loader
    found = said(make_checkpoint(tmp_path / "whole", "qwen2", **sizes | {"head_dim": 8}))
    assert found[VLLM][0] is True


# -- the tokenizer --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"tokenizer_class": "TokenizersBackend"}, "tokenizer: it has no class TokenizersBackend"),
        ({"tokenizer_class": "NovelTokenizer"}, "tokenizer: it has no class NovelTokenizer"),
        ({"extra_special_tokens": ["<a>"]}, "it takes a dictionary of extra_special_tokens"),
        ({"tokenizer_class": "GemmaTokenizer", "add_eos_token": True}, "strings get other ids"),
    ],
)
def test_a_tokenizer_that_4_57_does_not_read(copy, changes, because):
    assert said(copy)[OLDER][0] is True
    edit_json(copy / "tokenizer_config.json", **changes)
    found = said(copy)
    assert found[OLDER][0] is False and because in found[OLDER][1]
    if "Gemma" not in str(changes):
        assert found[HERE][0] and found[VLLM][0]


def test_a_tokenizer_that_nothing_reads(copy):
    (copy / "tokenizer.json").write_text("{")
    for answer, because in said(copy).values():
        assert answer is False and "does not load: Expecting property name" in because
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    for answer, because in said(copy).values():
        assert answer is False and "has no tokenizer (none of" in because


def test_the_space_in_front_is_as_the_config_says_in_4_57(copy):
    path = copy / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": " ",
        "prepend_scheme": "always",
    }
    tokenizer["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                                  "use_regex": True}  # fmt: skip
    path.write_text(json.dumps(tokenizer))
    answer, because = said(copy)[OLDER]
    assert answer is False and "strings get other ids" in because
    edit_json(copy / "tokenizer_config.json", add_prefix_space=True)
    assert said(copy)[OLDER][0] is True


# -- mixtures of experts, and models of texts and images ------------------------------------------


def test_experts_are_read_one_by_one(random_family, tmp_path):
    single = random_family("mixtral")
    found = said(fuse(single, tmp_path / "stacked"))
    for loader in (OLDER, VLLM):
        assert found[loader][0] is False and "one behind the other" in found[loader][1]
        assert "one behind the other" not in said(single)[loader][1]
    assert found[HERE][0] is True
    named = said(random_family("qwen3_moe"))  # as transformers 5 writes it
    assert named[OLDER] == (False, "it reads num_experts, which the config does not say")
    assert named[VLLM][0] is True and "6 experts, 8 heads" in named[VLLM][1]


@pytest.mark.parametrize(
    ("settings", "devices", "because"),
    [
        ({"norm_topk_prob": True}, 1, "norm_topk_prob is True, and its OlmoeForCausalLM"),
        ({}, 8, "8 devices for 6 experts"),
        ({"shared_expert_intermediate_size": 7}, 2, "7 channels of the shared expert mod 2 is 1"),
    ],
)
def test_mixtures_in_vllm(settings, devices, because):
    mixture = replace(block(hidden=4096), experts=Mixture(6, 2, 0))
    of = facts([mixture], architecture="OlmoeForCausalLM", **{"model_type": "olmoe"} | settings)
    found = tensor_parallel(of, devices)
    assert found.loads is False and because in found.because


SCALING = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 0]}}


@pytest.mark.parametrize(
    ("kind", "text", "because"),
    [
        ("llava", {}, "has vision_tower.vision_model, and the files have vision_tower.embeddings"),
        ("qwen2_vl", {}, "mrope_section in rope_scaling, where the config does not have it"),
        ("qwen2_vl", SCALING, "it would read rope_theta 1e+06, the model's is 10000"),
    ],
)
def test_4_57_has_older_names_of_what_is_beside_texts(llama, tmp_path, kind, text, because):
    folder = make_wrapper(tmp_path / "model", kind, llama, num_hidden_layers=1)
    inside = json.loads((folder / "config.json").read_text())["text_config"]
    edit_config(folder, text_config=inside | text)
    found = said(folder)
    assert found[OLDER][0] is False and because in found[OLDER][1]
    assert found[VLLM][0] is True and found[VLLM][1].endswith("tried on texts alone")


def test_other_models_around_a_language_model_were_not_tried(llama, tmp_path):
    folder = make_wrapper(tmp_path / "model", "llava", llama, model_type="mistral")
    assert said(folder)[VLLM] == (
        None,
        "LlavaForConditionalGeneration around a mistral was not tried with it",
    )


# -- rules on numbers -----------------------------------------------------------------------------


def block(heads=32, kv_heads=8, ffn=14336, hidden=4096, head_dim=128) -> BlockWidths:
    return BlockWidths(hidden, heads * head_dim, kv_heads * head_dim, head_dim, ffn, 2)


def facts(widths, path=None, here=FINE, architecture="LlamaForCausalLM", **config) -> Facts:
    config = {"model_type": "llama", "architectures": [architecture]} | config
    return Facts(Folder(path or Path("."), config, config), widths, [], here)


@pytest.mark.parametrize(
    ("widths", "devices", "answer", "because"),
    [
        (block(), 8, True, "32 heads, 8 KV heads, 14336 FFN channels"),
        (block(kv_heads=2), 8, True, "2 KV heads"),  # repeated four times
        (block(heads=28, kv_heads=7), 8, False, "28 heads mod 8 is 4"),
        (block(heads=24, kv_heads=6), 4, False, "6 KV heads mod 4 is 2"),
        (block(heads=24, kv_heads=6), 2, True, "24 heads"),
        (block(ffn=14340), 8, False, "14340 FFN channels mod 8 is 4"),
    ],
)
def test_tensor_parallel(widths, devices, answer, because):
    found = tensor_parallel(facts([widths] * 2), devices)
    assert found.loads is answer and because in found.because


def test_vllm_has_classes_for_some_architectures_and_activations():
    silu = tensor_parallel(facts([block()], hidden_act="gelu"), 1)
    assert silu.loads is False and "hidden_act is gelu, and its class takes silu" in silu.because
    gone = tensor_parallel(facts([block()], architecture="BaichuanForCausalLM"), 1)
    assert gone.because == "it has no class for BaichuanForCausalLM"
    novel = tensor_parallel(facts([block()], architecture="NovelForCausalLM"), 1)
    assert novel.loads is None and "not tried" in novel.because
    assert tensor_parallel(facts([block()], architectures=None), 1).loads
    refused = Loading("ValueError: heads", None, config_refused=True, tokenizer=object())
    assert tensor_parallel(facts([block()], here=refused), 1).loads is False


@pytest.mark.parametrize(
    ("widths", "four", "k"),
    [
        (block(), "multiples of 128", "multiples of 256"),
        (block(ffn=11008), "multiples of 128", "multiples of 256"),
        (block(ffn=6784), "multiples of 128", "6784 mod 256 is 128"),
        (block(ffn=205), "205 mod 128 is 77", "205 mod 256 is 205"),
        (block(heads=9, kv_heads=3, hidden=1152, head_dim=64), "576 mod 128 is 64", "576 mod 256"),
        # Three KV heads of 32 beside four query heads: 4 x 32 + 2 x 3 x 32 output channels.
        (block(heads=4, kv_heads=3, hidden=256, ffn=256, head_dim=32), "4-bit", "128 mod 256"),
    ],
)
def test_quantised_kernels(widths, four, k, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    found = four_bits([widths]), k_quants(facts([widths], tmp_path))
    for answer, because in zip(found, (four, k), strict=True):
        assert because in answer.because or because in answer.target
        assert answer.loads is ("mod" not in answer.because)


@pytest.mark.parametrize(
    ("architecture", "widths", "config", "answer", "because"),
    [
        ("OPTForCausalLM", block(), {}, False, "converter has no OPTForCausalLM"),
        ("NovelForCausalLM", block(), {}, None, "was not tried"),
        ("Phi3ForCausalLM", block(heads=16), {}, False, "4096 / 16 is not 128"),
        ("Qwen2ForCausalLM", block(heads=16), {}, False, "4096 / 16 is not 128"),
        ("Qwen3ForCausalLM", block(heads=16), {}, None, "a checksum in it decides"),
        ("GPT2LMHeadModel", block(ffn=11008), {"n_ctx": 64}, False, "has 4 x 4096 FFN channels"),
        ("GPT2LMHeadModel", block(ffn=16384), {}, False, "needs n_ctx in the config"),
        ("GPT2LMHeadModel", block(ffn=16384), {"n_ctx": 64}, None, "a checksum"),
        ("GPTNeoXForCausalLM", block(), {}, None, "with transformers 4 beside it alone"),
        ("Gemma2ForCausalLM", block(), {}, True, "multiples of 256"),
        ("MistralForCausalLM", block(), {"sliding_window": 4096}, True, "beyond 4096 tokens"),
    ],
)
def test_llama_cpp_converts_some_architectures(
    architecture, widths, config, answer, because, tmp_path
):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    found = k_quants(facts([widths], tmp_path, architecture=architecture, **config))
    assert found.loads is answer and because in found.because


@pytest.mark.parametrize(
    ("tokenizer", "answer", "because"),
    [
        (
            {"model": {"type": "BPE", "byte_fallback": True}, "decoder": {"type": "Sequence"}},
            True,
            "",
        ),
        ({"model": {"type": "BPE"}, "decoder": {"type": "ByteLevel"}}, None, "a checksum"),
        (None, None, "a checksum"),
    ],
)
def test_tokenizers_that_llama_cpp_knows(tokenizer, answer, because, tmp_path):
    if tokenizer:
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = k_quants(facts([block()], tmp_path))
    assert found.loads is answer and because in found.because
    found = k_quants(facts([block()], tmp_path, architecture="Gemma2ForCausalLM"))
    assert found.loads is False and "wants a tokenizer.model" in found.because


@pytest.mark.parametrize(
    ("config", "because"),
    [
        ({}, None),
        ({"rope_parameters": {"rope_theta": 10000.0}}, None),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5}}, None),
        ({"rope_parameters": {"rope_theta": 5e5}}, "read rope_theta 10000, the model's is 500000"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type llama3 but no rope_scaling"),
        (
            {
                "rope_parameters": {"rope_type": "linear", "factor": 2.0},
                "rope_scaling": {"type": "linear", "factor": 4.0},
            },
            "it would read factor 4.0 of rope_scaling, the model's is 2.0",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 1, the model"),
        (
            {"model_type": "gpt_neox", "rope_parameters": {"partial_rotary_factor": 0.5},
             "partial_rotary_factor": 0.5},
            "it would read rotary_pct 0.25, the model's is 0.5",
        ),
        (
            {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 5e5}, "rope_theta": 5e5},
            "it would read rotary_emb_base 10000",
        ),
        ({"model_type": "gemma3_text", "rope_parameters": {
            "full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}}, None),
        ({"model_type": "gemma3_text", "rope_parameters": {
            "full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 2e4}}},
         "it would read rope_local_base_freq 10000"),
    ],
)  # fmt: skip
def test_what_older_transformers_read_of_the_config(config, because):
    found = rotation(facts([block()], **config))
    assert found is None if because is None else because in found
