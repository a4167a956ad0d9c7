"""What a config says, what its class has in the place of what it does not say, and what is refused."""

import json
import shutil

import pytest
import torch
from edits import edit_config, edit_tensors
from transformers import AutoModelForCausalLM

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": 3}, r"transformers 5\..* refuses the config of .*hidden_act.*int"),
        ({"num_attention_heads": "8"}, r"refuses the config of .*num_attention_heads.*str"),
        ({"num_attention_heads": 0}, "refuses the config of .*zero"),
        ({"rope_parameters": {"rope_type": "none such"}}, "(refuses|makes no model).*none such"),
    ],
)
def test_a_config_that_transformers_refuses(copy, changes, message):
    edit_config(copy, **changes)
    with pytest.raises(InputError, match=message) as raised:
        Checkpoint(copy)
    assert "\n" not in str(raised.value)


@pytest.fixture
def undivided(make_checkpoint, tmp_path):
    """Six heads at a hidden size of 32, as a llama config: a mistral one may have them."""
    folder = make_checkpoint(
        tmp_path / "undivided", "mistral", num_attention_heads=6, num_key_value_heads=3
    )
    edit_config(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    return folder


def test_heads_that_do_not_divide_the_hidden_size_are_offered_as_mistral(undivided):
    with pytest.raises(InputError, match=r"is not a multiple .* As mistral the same ten") as raised:
        Checkpoint(undivided)
    assert '"model_type": "mistral", "architectures": ["MistralForCausalLM"]' in str(raised.value)
    _, _, advice = str(raised.value).partition("write ")
    edit_config(undivided, **json.loads("{" + advice.partition(" in a copy")[0] + "}"))
    assert Checkpoint(undivided).heads == 6
    AutoModelForCausalLM.from_pretrained(undivided)


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"hidden_act": 3}])
def test_what_mistral_does_not_take_is_not_offered(undivided, changes):
    edit_config(undivided, **changes)
    with pytest.raises(InputError, match="refuses the config") as raised:
        Checkpoint(undivided)
    assert "As mistral" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"architectures": ["LlamaForTokenClassification"]}, "LlamaForCausalLM"),
        ({"architectures": ["LlamaForRewardModel"]}, "LlamaForRewardModel"),
        ({"architectures": "LlamaModel"}, r"is of a LlamaModel \(arch.*in a copy of config\.json"),
        ({"architectures": ["LlamaForCausalLMEagle"]}, "LlamaForCausalLMEagle"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention true: every token"),
        ({"is_causal": False}, "is_causal false: every token"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder true"),
    ],
)
def test_a_task_that_is_not_the_next_token(copy, changes, message):
    edit_config(copy, **changes)
    with pytest.raises(InputError, match=message):
        Checkpoint(copy)


def test_a_gemma_that_sees_both_ways_is_no_generator(random_family, tmp_path):
    folder = shutil.copytree(random_family("gemma3_text"), tmp_path / "embedder")
    edit_config(folder, use_bidirectional_attention=True)
    with pytest.raises(
        InputError, match=r"text encoders.* Only models that predict the next token"
    ):
        Checkpoint(folder)


def test_a_text_embedder_of_sentence_transformers(copy):
    (copy / "modules.json").write_text("[]")
    with pytest.raises(InputError, match=r"text embedding model .* without modules\.json"):
        Checkpoint(copy)


@pytest.mark.parametrize(
    "architectures", [..., None, [], ["LLaMAForCausalLM"], ["MistralForCausalLM"]]
)
def test_other_names_of_the_class_are_read(copy, architectures):
    edit_config(copy, architectures=architectures)
    assert Checkpoint(copy).blocks == 3


# Settings that a family's class has a value of its own for, and that value.
DEFAULTS = [
    ("qwen3", "head_dim", 128),
    ("gemma2", "head_dim", 256),
    ("gemma3_text", "head_dim", 256),
    ("qwen2", "num_key_value_heads", 32),
    ("qwen3", "num_key_value_heads", 32),
    ("mistral", "num_key_value_heads", 8),
]
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(("model_type", "key", "value"), DEFAULTS)
def test_what_a_config_leaves_out_is_what_its_class_has(
    make_checkpoint, tmp_path, model_type, key, value
):
    sizes = SMALL | {key: value}
    sizes |= {"num_attention_heads": value} if key == "num_key_value_heads" else {}
    folder = make_checkpoint(tmp_path / "model", model_type, num_hidden_layers=1, **sizes)
    with_it = Checkpoint(folder)
    edit_config(folder, **{key: ...})
    without = Checkpoint(folder)
    assert without.head_dim == with_it.head_dim
    assert without.kv_heads == with_it.kv_heads
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
    (found,) = BlockStream(without).logits([ids])
    torch.testing.assert_close(found, expected)


def test_other_settings_that_a_config_leaves_out(copy):
    edit_config(copy, max_position_embeddings=..., hidden_act=..., tie_word_embeddings=...)
    checkpoint = Checkpoint(copy)
    assert checkpoint.positions == 2048
    assert checkpoint.config["hidden_act"] == "silu"
    assert not checkpoint.ties and not checkpoint.tied


def test_a_head_that_gemma_ties_by_itself(random_family, tmp_path):
    folder = shutil.copytree(random_family("gemma2"), tmp_path / "gemma")
    edit_config(folder, tie_word_embeddings=...)
    assert Checkpoint(folder).tied
    name = "model.embed_tokens.weight"
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": 2 * t[name]}))
    checkpoint = Checkpoint(folder)
    assert not checkpoint.tied
    assert checkpoint.written_config["tie_word_embeddings"] is False
