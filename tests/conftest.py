"""Small random checkpoints of every family, and the real ones where they are at hand."""

import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

# Triton decides at the definition of a kernel whether it is interpreted.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from compressor.checkpoint import Checkpoint
from compressor.families import FAMILIES

SHARED = Path(__file__).parent.parent.parent / "shared"
SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
# All numbers of KV groups have heads that divide the hidden size.
GEMMA = {
    "hidden_size": 48,
    "tie_word_embeddings": True,
    "sliding_window": 5,
    "query_pre_attn_scalar": 6,
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable ASCII character."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "\n": 3}
    vocabulary |= {chr(c): c - 28 for c in range(32, 127)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def build_checkpoint(folder: Path, model_type: str = "llama", dtype=torch.float32, **sizes) -> Path:
    """A random model whose biases, norms and weights are all different from their defaults."""
    shards = sizes.pop("max_shard_size", "1GB")
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SIZES, **sizes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        centre = 1.0 - FAMILIES[model_type].norm_offset if "norm" in name else 0.0
        parameter.data = centre + 0.15 * torch.randn_like(parameter)
    model.tie_weights()
    model.to(dtype).save_pretrained(folder, max_shard_size=shards)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_checkpoint():
    """The function that makes a random checkpoint in a folder."""
    return build_checkpoint


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def any_family(request, tmp_path_factory) -> Path:
    """One checkpoint of each family, with the variations that family has."""
    special = {
        "gemma2": GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        "gemma3_text": GEMMA | {"sliding_window_pattern": 2},
        "llama": {"tie_word_embeddings": True},
        "mistral": {"sliding_window": 5},
        "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    }
    folder = tmp_path_factory.mktemp(request.param) / "model"
    return build_checkpoint(folder, request.param, **special.get(request.param, {}))


@pytest.fixture
def rounding(any_family) -> float:
    """What of a number float64 leaves uncertain; Gemma's norms compute in float32 even there."""
    return 1e-6 if Checkpoint(any_family).family.norm_offset else 1e-12


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog; 12 boxes, 3 jugs.\n" * 30)
    return path


@pytest.fixture
def stories() -> tuple[Path, Path]:
    """A real trained model and real text."""
    model = SHARED / "models/stories260K"
    if not model.exists():
        pytest.skip("the trained model stories260K is not at hand")
    return model, SHARED / "data/tinystories/tinystories_clean.json"
