"""What the tensors of a mended folder compute, by code that knows no container, layout or file.

A Llama-shaped model is computed here from the shapes of its tensors, one block at a time in float32.
What was written is loaded by transformers and has to give the same logits. Other families are streamed.
"""

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from compressor.analysis.doctor.mended import Mended
from compressor.model.stream import BlockStream

LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3")


def reference(source: Mended, prompts: list[torch.Tensor]) -> list[torch.Tensor] | None:
    """float32 logits [tokens, vocabulary] of prompts [1, tokens]; None where there is no code for it."""
    plain = source.config.get("hidden_act", "silu") == "silu" and not source.window
    if source.family.model_type in LIKE_LLAMA and plain:
        return [logits(source, ids[0]) for ids in prompts]
    if source.unequal and not source.family.own_widths:
        return None
    streamed = source.of_own_widths() if source.unequal else source
    stream = BlockStream(streamed, dtype=torch.float32)
    return [each[0].float() for each in stream.logits(prompts)]


@torch.no_grad()
def logits(source: Mended, ids: torch.Tensor) -> torch.Tensor:
    """Of token ids [tokens]."""
    family = source.family
    outer = source.read(source.outer_tensors())
    x = outer[family.embedding][ids].float()
    turns = rotation(source, len(ids))
    for block in range(source.blocks):
        tensors = {name: t.float() for name, t in source.read_block(block).items()}
        x = x + attention(
            source, tensors, norm(source, x, tensors["input_layernorm.weight"]), turns
        )
        read = norm(source, x, tensors["post_attention_layernorm.weight"])
        gate, up = (projected(tensors, f"mlp.{name}_proj", read) for name in ("gate", "up"))
        x = x + projected(tensors, "mlp.down_proj", silu(gate) * up)
    x = norm(source, x, outer["model.norm.weight"].float())
    return x @ outer[family.embedding if source.tied else family.head].float().T


def projected(tensors: dict[str, torch.Tensor], module: str, x: torch.Tensor) -> torch.Tensor:
    return linear(x, tensors[f"{module}.weight"], tensors.get(f"{module}.bias"))


def norm(source: Mended, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (
        x * torch.rsqrt(x.square().mean(-1, keepdim=True) + source.config["rms_norm_eps"]) * weight
    )


def attention(
    source: Mended,
    tensors: dict[str, torch.Tensor],
    x: torch.Tensor,
    turns: tuple[torch.Tensor, ...],
) -> torch.Tensor:
    """As many heads as there are channels for; KV heads serve as many queries each, in order."""

    def heads(name: str) -> torch.Tensor:
        split = projected(tensors, f"self_attn.{name}_proj", x).unflatten(-1, (-1, source.head_dim))
        if (weight := tensors.get(f"self_attn.{name}_norm.weight")) is not None:
            split = norm(source, split, weight)
        return split.transpose(0, 1)  # [heads, tokens, head_dim]

    q, k, v = turned(heads("q"), turns), turned(heads("k"), turns), heads("v")
    k, v = (t.repeat_interleave(len(q) // len(t), 0) for t in (k, v))
    mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
    return projected(tensors, "self_attn.o_proj", mixed.transpose(0, 1).flatten(1))


def rotation(source: Mended, tokens: int) -> tuple[torch.Tensor, ...]:
    """Cosines and sines [tokens, head_dim]."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config, scale = source.model_config(), 1.0
    rope = config.rope_parameters or {"rope_theta": 10_000.0}
    if (kind := rope.get("rope_type", "default")) == "default":
        places = torch.arange(0, source.head_dim, 2).float() / source.head_dim
        speeds = rope["rope_theta"] ** -places
    else:
        speeds, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    angles = torch.arange(tokens)[:, None] * speeds
    angles = torch.cat((angles, angles), -1)
    return angles.cos() * scale, angles.sin() * scale


def turned(x: torch.Tensor, turns: tuple[torch.Tensor, ...]) -> torch.Tensor:
    cosines, sines = turns
    first, second = x.chunk(2, -1)
    return x * cosines + torch.cat((-second, first), -1) * sines
