"""Small random models of texts and images, in folders as transformers writes them."""

from pathlib import Path

import torch
from conftest import SIZES, make_tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText

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
        QWEN | {"vision_config": QWEN["vision_config"] | {"out_hidden_size": 32, "hidden_size": 16}},
        QWEN_TEXT,
    ),
    "qwen2_vl": (QWEN, QWEN_TEXT),
}


def make_wrapper(folder: Path, model_type: str, dtype=torch.float32, **text) -> Path:
    """A random wrapper, the settings of whose language model may be given."""
    torch.manual_seed(0)
    around, inside = KINDS[model_type]
    settings = {k: v for k, v in {**SIZES, **inside, **text}.items() if v is not None}
    config = AutoConfig.for_model(model_type, text_config=settings, **around)
    config.tie_word_embeddings = settings["tie_word_embeddings"]
    model = AutoModelForImageTextToText.from_config(config).float()
    gemma = model_type == "gemma3"
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name and not gemma else 0.0
        parameter.data = centre + 0.15 * torch.randn_like(parameter)
    model.tie_weights()
    model.to(dtype).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
