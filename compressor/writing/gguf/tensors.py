"""What tensors are called in a GGUF file, and the rotation of queries and keys in it."""

import math

import torch

from compressor.model.families.experts import DOWN, GATE_UP
from compressor.model.source import Source
from compressor.writing.gguf.architectures import rope_of

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
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
# Experts one behind the other: of every expert its gate's rows and then up's, which files have apart.
STACKS = {GATE_UP: ("ffn_gate_exps", "ffn_up_exps"), DOWN: ("ffn_down_exps",)}
ROUTERS = ("ffn_gate_inp", "ffn_gate_inp_shexp")  # float32 in files of any type
ROTATED = ("attn_q", "attn_k")
FACTORS = "rope_freqs.weight"


def written_names(source: Source) -> dict[str, tuple[str, ...]]:
    """Of every tensor's whole name those of its parts in the file, in its order; most are one part."""
    names: dict[str, tuple[str, ...]]
    names = {name: (OUTER[name],) for name in source.outer_tensors()}
    for index in range(source.blocks):
        for inner in source.block_tensors(index):
            module, _, kind = inner.rpartition(".")
            parts, kind = (STACKS[inner], "weight") if inner in STACKS else ((BLOCK[module],), kind)
            written = tuple(f"blk.{index}.{part}.{kind}" for part in parts)
            names[source.block_name(index, inner)] = written
    return names


def parts_of(tensor: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """The parts of a tensor that the file has apart."""
    return tensor.chunk(count, 1) if count > 1 else (tensor,)


def is_router(written: str) -> bool:
    return written.split(".")[2:3] in ([name] for name in ROUTERS)


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
