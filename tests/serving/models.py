"""Small random models that engines have, and a tokenizer that llama.cpp knows."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from edits import edit_config, edit_tensors
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from wrappers import KINDS, make_wrapper

from compressor.model.checkpoint import Checkpoint
from compressor.model.families import FAMILIES

# Heads of 32 channels, the fewest that vLLM has on a CPU. Whole numbers of KV groups go.
SIZES = {"hidden_size": 128, "intermediate_size": 512, "head_dim": 32, "vocab_size": 320}
SIZES |= {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 256}
FIXED = {"num_attention_heads": 4}  # where hidden size / heads is the channels of a head
VARIANTS = {
    "cohere": {"tie_word_embeddings": True, "logit_scale": 0.5},
    "falcon": {
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "tie_word_embeddings": True,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "gemma": {"tie_word_embeddings": True},
    "granite": {"residual_multiplier": 0.6, "attention_multiplier": 0.2, "logits_scaling": 2.0},
    "llama": {"tie_word_embeddings": True},
    "gemma2": {"sliding_window": 64, "query_pre_attn_scalar": 32, "tie_word_embeddings": True},
    "gemma3_text": {"sliding_window": 64, "query_pre_attn_scalar": 32, "tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "bloom": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": True},
    "smollm3": {"no_rope_layers": [1, 0, 1], "tie_word_embeddings": True},
    "starcoder2": {"tie_word_embeddings": True},
}
MIXTURE = {"num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 64}
VARIANTS |= {
    "mixtral": MIXTURE,
    "olmoe": MIXTURE | FIXED,
    "qwen2_moe": MIXTURE
    | FIXED
    | {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 96},
    "qwen3_moe": MIXTURE | {"moe_intermediate_size": 64, "norm_topk_prob": True},
}
# Of a language model in a wrapper, and of its tokens for images, which no text has.
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
OF_QWEN = FIXED | {"rope_parameters": ROPE}
INSIDE = {
    "gemma3": {"sliding_window": 64, "query_pre_attn_scalar": 32, "tie_word_embeddings": True},
    "qwen2_vl": OF_QWEN,
    "qwen2_5_vl": OF_QWEN,
}
IMAGES, BEYOND = range(110, 114), 200
TEXTS = ("Once upon a time", "def first(values):", "The house at the edge", "One, two, three and")
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level(texts: Iterable[str], template: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 300 tokens at most, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template
    )


def source_of(family: str, folder: Path, build: Callable) -> Checkpoint:
    """A small random model; build: `build_checkpoint` of conftest.py."""
    if family in KINDS:
        return wrapper_of(family, folder)
    sizes = SIZES | VARIANTS.get(family, {})
    if FAMILIES[family].heads_fixed:
        sizes |= FIXED
    build(folder, family, **sizes)
    edit_tensors(folder, partial(varied, family))
    byte_level(TEXTS * 8, TEMPLATE).save_pretrained(folder)
    return Checkpoint(folder)


def wrapper_of(kind: str, folder: Path) -> Checkpoint:
    """A small random model of texts and images."""
    make_wrapper(folder, kind, **SIZES | INSIDE.get(kind, {}))
    edit_tensors(folder, partial(varied, kind))
    config = json.loads((folder / "config.json").read_text())
    edit_config(
        folder,
        **{
            key: value + BEYOND
            for key, value in config.items()
            if key.endswith(("token_id", "token_index")) and value in IMAGES
        },
    )
    byte_level(TEXTS * 8, TEMPLATE).save_pretrained(folder)
    return Checkpoint(folder)


def varied(family: str, tensors: dict[str, torch.Tensor]) -> None:
    """Have the model not say the same token all the time: biases of norms are around 0, not 1, and what
    Gemma multiplies its embedding by, which is its head too, is taken back.
    """
    for name in tensors:
        if name.endswith("embed_tokens.weight") and family.startswith("gemma"):
            tensors[name] = tensors[name] / SIZES["hidden_size"] ** 0.5
        if name.endswith(".bias") and ("norm" in name or "ln_" in name):
            tensors[name] = tensors[name] - 1
