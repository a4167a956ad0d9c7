"""Small random checkpoints of every family, and the real ones where they are at hand."""

import json
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

# Before anything imports the project, whose kernels import Triton: it decides at the definition of a
# function, its own library's among them, whether that is interpreted.
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    if sys.modules.get("triton"):
        raise pytest.UsageError(
            "Triton was imported before tests/conftest.py could have it interpret its kernels; "
            "run the tests in a process of their own, or export TRITON_INTERPRET=1."
        )
    os.environ["TRITON_INTERPRET"] = "1"

from counting import Counting, add_option
from experts import HYBRID, HYBRIDS, MIXTURES
from made_once import examples_folder, small_examples, whole  # noqa: F401  # fixtures
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)
from unequal import written
from verifying import verified_freshly, verified_here  # noqa: F401  # fixtures

from compressor.kernels import native, triton_support
from compressor.model.checkpoint import Checkpoint
from compressor.model.families import FAMILIES, Family, modeling_alibi
from compressor.model.per_layer import class_of, config_name, has_uniform

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

FROM_THE_BASE_ON = {"bloom", "gpt2"}
# One each of: tied heads, biases, windows and norms before the stream, slopes and fused heads.
QUICK = ("bloom", "gemma2", "llama", "qwen2")


def pytest_addoption(parser) -> None:
    add_option(parser)


def pytest_configure(config) -> None:
    config.pluginmanager.register(Counting(config, torch.cuda.is_available(), why_not))


def why_not(kind: str) -> str | None:
    """Why a backend ("cpu-ext") cannot run here; None if it can, or always could."""
    device, _, backend = kind.partition("-")
    return {"triton": triton_support.missing(device), "ext": native.MISSING}.get(backend)


def pytest_collection_modifyitems(items: list) -> None:
    """The longest first, which the others then run beside."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


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
    family = FAMILIES[model_type]
    settings = spelled(family, {**SIZES, **sizes})
    if family.stock:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    else:
        config = getattr(modeling_alibi, config_name(family))(**settings)
        model = class_of(config, family)._from_config(config)
    model.float()
    for name, parameter in model.named_parameters():
        scales = "norm" in name or "ln_" in name
        centre = 1.0 - FAMILIES[model_type].norm_offset if scales else 0.0
        parameter.data = centre + 0.15 * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if name.endswith(family.in_float32):
            buffer.normal_(std=0.15)
    model.tie_weights()
    model.to(dtype).save_pretrained(folder, max_shard_size=shards)
    if not family.stock:  # the hub's folders have what their own code reads
        about = {"model_type": model_type, "architectures": [family.architecture]}
        about |= {"rms_norm_eps": 1e-6, **settings}
        (folder / "config.json").write_text(json.dumps(about))
    if model_type in FROM_THE_BASE_ON:
        shorten_names(folder, model.base_model_prefix)
    make_tokenizer().save_pretrained(folder)
    return folder


def shorten_names(folder: Path, base: str) -> None:
    """Name tensors as the hub's files of a family do: from inside the base model."""
    file = folder / "model.safetensors"
    tensors = {n.removeprefix(f"{base}."): t for n, t in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


def spelled(family: Family, sizes: dict) -> dict:
    """The sizes as a config of the family names them; those that it does not have are left out."""
    lacking = {"head_dim", family.kv_heads_key} if family.heads_fixed else set()
    lacking |= {family.ffn_width_key} if family.ffn_fixed else set()
    return {family.spellings.get(k, k): value for k, value in sizes.items() if k not in lacking}


@pytest.fixture(scope="session")
def make_checkpoint():
    """The function that makes a random checkpoint in a folder."""
    return build_checkpoint


def families(chosen: Callable[[Family], bool]) -> list:
    """The model types of some families as parameters, most of them for `make test-all` only."""
    return [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.breadth)
        for name in sorted(FAMILIES)
        if chosen(FAMILIES[name])
    ]


def unequal(family: Family) -> bool:
    return family.own_widths and family.stock and not family.couples_heads({})


def of_channels(family: Family) -> bool:
    return family.stock and family.experts is None


@pytest.fixture(
    scope="session", params=families(lambda f: of_channels(f) and f.model_type not in HYBRIDS)
)
def any_family(request, random_family) -> Path:
    """One checkpoint of each family that transformers has a class for, of one FFN a block, whose blocks
    are alike.
    """
    return random_family(request.param)


@pytest.fixture(scope="session", params=families(of_channels))
def any_kinds(request, random_family) -> Path:
    """The same, and of those whose blocks are of several kinds."""
    return random_family(request.param)


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def every_family(request, random_family) -> Path:
    """One checkpoint of each family."""
    return random_family(request.param)


@pytest.fixture(scope="session", params=sorted(MIXTURES))
def any_mixture(request, random_family) -> Path:
    """One checkpoint of each family of mixtures of experts."""
    return random_family(request.param)


@pytest.fixture(scope="session")
def mixture(random_family) -> Path:
    """One of them."""
    return random_family("qwen3_moe")


@pytest.fixture(scope="session", params=families(unequal))
def any_unequal(request, random_family) -> Path:
    """The same of those whose blocks can have widths of their own."""
    return random_family(request.param)


@pytest.fixture(scope="session")
def random_family(tmp_path_factory):
    """The checkpoint of a model type, made once."""

    @cache
    def made(model_type: str) -> Path:
        return make_family(model_type, tmp_path_factory.mktemp(model_type) / "model")

    return made


def make_family(model_type: str, folder: Path, **sizes) -> Path:
    """The checkpoint of a family with what sets it apart, or with these sizes in its place."""
    special = {
        "baichuan": {"num_attention_heads": 4},
        "bloom": {"tie_word_embeddings": True, "num_attention_heads": 4},
        "cohere": {"logit_scale": 0.5},
        "falcon": {
            "new_decoder_architecture": True,
            "num_kv_heads": 4,
            "intermediate_size": 128,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
        "gemma2": GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        "gemma3_text": GEMMA | {"sliding_window_pattern": 2},
        "gpt2": {
            "intermediate_size": 128,
            "tie_word_embeddings": True,
            "max_position_embeddings": 96,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        "gpt_neox": {"intermediate_size": 128, "rotary_pct": 0.5},
        "granite": {"residual_multiplier": 0.6, "attention_multiplier": 0.4, "logits_scaling": 2.0},
        "llama": {"tie_word_embeddings": True},
        "mistral": {"sliding_window": 5},
        "olmo2": {"intermediate_size": 128},  # all that can be cut
        "opt": {
            "word_embed_proj_dim": 32,
            "intermediate_size": 128,
            "tie_word_embeddings": True,
            "max_position_embeddings": 96,
            "dropout": 0.0,
        },
        # As in all of them, heads share the hidden size.
        "qwen2": {"hidden_size": 48, "head_dim": 6},
        "qwen3_5_text": HYBRID,
        "smollm3": {"no_rope_layers": [1, 0, 1], "tie_word_embeddings": True},
    }
    special |= MIXTURES
    return build_checkpoint(folder, model_type, **(sizes or special.get(model_type, {})))


@pytest.fixture
def equal_layout(any_family) -> str:
    """What a cut of equal blocks is written as: uniform, where a family's class has other widths."""
    return "uniform" if has_uniform(Checkpoint(any_family).family) else "per-layer"


@pytest.fixture
def rounding(any_family) -> float:
    """What of a number float64 leaves uncertain; norms of Gemma and Cohere and Bloom's softmax
    are float32 even there.
    """
    family = Checkpoint(any_family).family
    narrow = family.norm_offset or family.alibi or family.model_type == "cohere"
    return 1e-6 if narrow else 1e-12


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog; 12 boxes, 3 jugs.\n" * 30)
    return path


@pytest.fixture
def quick(llama, text_file):
    """Arguments of a run without verification, but for SOURCE and DEST."""
    return ["--calibration", text_file, "--length", 32, "--samples", 4, "--no-verify"]


@pytest.fixture
def stories() -> tuple[Path, Path]:
    """A real trained model and real text."""
    model = SHARED / "models/stories260K"
    if not model.exists():
        pytest.skip("needs ../shared, with the trained model stories260K")
    return model, SHARED / "data/tinystories/tinystories_clean.json"


@pytest.fixture
def unequal(llama, tmp_path):
    """A llama of three blocks of different widths."""
    return written(llama, tmp_path / "unequal")
