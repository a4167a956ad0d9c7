"""What tensors are called in a GGUF file of the architectures `llama` and `deci`, and their rotation."""

import math

import torch

from compressor.model.source import Source
from compressor.writing.gguf.metadata import rope_of

OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROTATED = ("attn_q", "attn_k")
FACTORS = "rope_freqs.weight"


def written_names(source: Source) -> dict[str, str]:
    """Of every tensor's whole name the one in the file, in its order."""
    names = {name: OUTER[name] for name in source.outer_tensors()}
    for index in range(source.blocks):
        for inner in source.block_tensors(index):
            module, _, kind = inner.rpartition(".")
            names[source.block_name(index, inner)] = f"blk.{index}.{BLOCK[module]}.{kind}"
    return names


def rotated(written: str, tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Queries and keys with the channels that turn together side by side: llama.cpp turns the pairs
    (0, 1), (2, 3), ..., transformers (0, d/2), (1, d/2 + 1), ...
    """
    if written.split(".")[2:3] not in ([name] for name in ROTATED):
        return tensor
    halves = tensor.unflatten(0, (-1, 2, head_dim // 2))
    return halves.transpose(1, 2).flatten(0, 2)


def extra_tensors(source: Source) -> dict[str, torch.Tensor]:
    """What llama.cpp reads beside the weights: Llama 3.1's factors of the rotary frequencies.

    A frequency is divided by its factor: by 1 where its wave is short, by `factor` where it is long, and
    in between by what interpolates the two (transformers, `_compute_llama3_parameters`).
    """
    rope = rope_of(source)
    if rope.get("rope_type") != "llama3":
        return {}
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    old, factor = rope["original_max_position_embeddings"], rope["factor"]
    exponents = torch.arange(0, source.head_dim, 2, dtype=torch.float64) / source.head_dim
    waves = 2 * math.pi * rope["rope_theta"] ** exponents
    smooth = ((old / waves - low) / (high - low)).clamp(0, 1)
    return {FACTORS: (1 / (smooth + (1 - smooth) / factor)).float()}
