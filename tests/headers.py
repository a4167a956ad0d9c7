"""Checkpoints of real models' shapes without their weights: a config, headers, and holes in files."""

import json
import math
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from compressor.model.tensors import SINGLE

SHAPES = {  # vocabulary, hidden, FFN, blocks, heads, KV heads, head_dim, tied
    "SmolLM2-135M": ("llama", 49152, 576, 1536, 30, 9, 3, 64, True),
    "Gemma 3 270M": ("gemma3_text", 262144, 640, 2048, 18, 4, 1, 256, True),
    "Qwen2-0.5B": ("qwen2", 151936, 896, 4864, 24, 14, 2, 64, True),
    "TinyLlama-1.1B": ("llama", 32000, 2048, 5632, 22, 32, 4, 64, False),
    "LLaMA-7B": ("llama", 32000, 4096, 11008, 32, 32, 32, 128, False),
    "Llama-2-70B": ("llama", 32000, 8192, 28672, 80, 64, 8, 128, False),
}


def write_headers(name: str, folder: Path) -> Path:
    """A folder of the shapes of a model in `SHAPES`, in bfloat16; what its tensors hold is zeros."""
    kind, vocabulary, hidden, ffn, blocks, heads, kv_heads, head_dim, tied = SHAPES[name]
    config = AutoConfig.for_model(
        kind,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=tied,
        architectures=[],
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json_string(use_diff=False))
    header, end = {}, 0
    for tensor, parameter in model.named_parameters():
        begin, end = end, end + 2 * math.prod(parameter.shape)
        entry = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [begin, end]}
        header[tensor] = entry
    text = json.dumps(header).encode()
    with (folder / SINGLE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder
