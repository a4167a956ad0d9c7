"""Small random models of texts and images, in folders as transformers writes them."""

import shutil
from pathlib import Path

import torch
from experts import HYBRID, MIXTURES
from transformers import AutoConfig, AutoModelForImageTextToText

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
IMAGE = 110  # the token that stands for a part of an image
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
LLAVA = {"vision_config": {"model_type": "clip_vision_model", **VISION}, "image_token_index": IMAGE}
QWEN = {
    "vision_config": {
        "depth": 1,
        "embed_dim": 16,
        "hidden_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "image_token_id": IMAGE,
    "video_token_id": 111,
    "vision_start_token_id": 112,
    "vision_end_token_id": 113,
}
QWEN_TEXT = {
    "head_dim": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]},
}
QWEN3_5 = QWEN | {
    "vision_config": VISION
    | {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "num_position_embeddings": 16}
}
QWEN3_5_TEXT = {
    **{name: value for name, value in HYBRID.items() if name.startswith("linear")},
    **{"head_dim": 16, "full_attention_interval": 2, "mtp_num_hidden_layers": 1},
}
# Of every wrapper: what is beside the language model, and what sets that apart.
KINDS = {
    "gemma3": (
        {
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": IMAGE,
            "boi_token_index": 111,
            "eoi_token_index": 112,
        },
        {
            "hidden_size": 48,
            "sliding_window": 5,
            "query_pre_attn_scalar": 6,
            "tie_word_embeddings": True,
            "model_type": "gemma3_text",
        },
    ),
    "llava": (LLAVA, {"model_type": "llama"}),
    "llava_next": (LLAVA | {"image_grid_pinpoints": [[8, 8]]}, {"model_type": "mistral"}),
    "mistral3": (
        {
            "vision_config": {"model_type": "pixtral", "head_dim": 8, **VISION},
            "image_token_index": IMAGE,
        },
        {"model_type": "mistral"},
    ),
    "qwen2_5_vl": (
        QWEN
        | {"vision_config": QWEN["vision_config"] | {"out_hidden_size": 32, "hidden_size": 16}},
        QWEN_TEXT,
    ),
    "qwen2_vl": (QWEN, QWEN_TEXT),
    "qwen3_5": (QWEN3_5, QWEN3_5_TEXT),
    "qwen3_5_moe": (QWEN3_5, QWEN3_5_TEXT | MIXTURES["qwen3_5_moe_text"] | {"layer_types": None}),
}


def make_wrapper(folder: Path, kind: str, tokenizer: Path | None = None, **text) -> Path:
    """A random wrapper with the tokenizer of another folder; settings of its language model may be
    given.
    """
    torch.manual_seed(0)
    around, inside = KINDS[kind]
    settings = {k: v for k, v in {**SIZES, **inside, **text}.items() if v is not None}
    config = AutoConfig.for_model(kind, text_config=settings, **around)
    config.tie_word_embeddings = settings["tie_word_embeddings"]
    model = AutoModelForImageTextToText.from_config(config).float()
    gemma = kind == "gemma3"
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name and not gemma else 0.0
        parameter.data = centre + 0.15 * torch.randn_like(parameter)
    model.tie_weights()
    model.save_pretrained(folder)
    for file in tokenizer.glob("tokenizer*") if tokenizer else ():
        shutil.copyfile(file, folder / file.name)
    return folder


def picture(kind: str) -> dict[str, torch.Tensor]:
    """What a model of the kind is called with on a text that has an image in it."""
    torch.manual_seed(1)
    ids = torch.tensor([[1, 20, 112, *[IMAGE] * 4, 113, 30, 40]])
    if "qwen" in kind:
        patches = {"pixel_values": torch.randn(16, 96), "image_grid_thw": torch.tensor([[1, 4, 4]])}
        return {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE).long(), **patches}
    types = {"token_type_ids": (ids == IMAGE).long()} if kind == "gemma3" else {}
    return {"input_ids": ids, "pixel_values": torch.randn(1, 3, 8, 8), **types}
