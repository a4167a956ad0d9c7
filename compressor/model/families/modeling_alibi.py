"""Bloom and Baichuan-13B whose blocks have widths of their own, from `per_layer_config`.

These models have no positions but ALiBi (arXiv 2108.12409): head h adds slope[h] * (j - i) to the score
that the query at i gives the key at j. The slopes depend on how many heads the model had at first, which
are hidden size / head_dim; `alibi_heads` says which of those a block has.

This file stands beside the weights, with `modeling_per_layer.py`, and needs nothing but transformers:

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
"""

import copy
import math

import torch
from torch import nn
from transformers import BloomForCausalLM, MistralConfig, MistralForCausalLM
from transformers.models.bloom.modeling_bloom import BloomBlock
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralDecoderLayer

from .modeling_per_layer import PerLayer, block_config

BAICHUAN2_VOCABULARY = 125_696  # its head's rows are normalised


def first_heads(config):
    """How many heads every block had at first."""
    head_dim = getattr(config, "head_dim", None)
    return config.hidden_size // head_dim if head_dim else config.num_attention_heads


def alibi_heads(config):
    """Which of those a block has."""
    return list(getattr(config, "alibi_heads", range(first_heads(config))))


class AlibiBloomBlock(BloomBlock):
    """Uses the biases of its own heads, of all that the model made."""

    def __init__(self, config, index):
        super().__init__(PerLayerBloomForCausalLM.first(config), index)
        attention, mlp, hidden = self.self_attention, self.mlp, config.hidden_size
        self.first_heads, self.heads = first_heads(config), alibi_heads(config)
        attention.num_heads = len(self.heads)
        width = len(self.heads) * attention.head_dim
        ffn = getattr(config, "intermediate_size", 4 * hidden)
        attention.query_key_value = nn.Linear(hidden, 3 * width)
        attention.dense = nn.Linear(width, hidden)
        mlp.dense_h_to_4h, mlp.dense_4h_to_h = nn.Linear(hidden, ffn), nn.Linear(ffn, hidden)

    def keep_heads(self, kept):
        self.heads = [self.heads[i] for i in kept]
        self.self_attention.num_heads = len(self.heads)

    def forward(self, hidden_states, alibi, *args, **kwargs):
        own = alibi.unflatten(0, (-1, self.first_heads))[:, self.heads]
        own = own.expand(len(hidden_states), -1, -1, -1).flatten(0, 1)
        return super().forward(hidden_states, own, *args, **kwargs)


class PerLayerBloomForCausalLM(PerLayer, BloomForCausalLM):
    layers = "h"
    block = AlibiBloomBlock

    @staticmethod
    def first(config):
        whole = copy.copy(block_config(config, 0))
        whole.n_head = first_heads(whole)
        return whole


def slopes(heads, first):
    """float32 [heads]: the slopes of these of the first heads."""
    power = 2 ** math.floor(math.log2(first))
    exponents = [
        8 * (h + 1) / power if h < power else 4 * (2 * (h - power) + 1) / power for h in heads
    ]
    return torch.tensor([2.0**-exponent for exponent in exponents])


class AlibiAttention(MistralAttention):
    """Queries, keys and values from one matrix, in this order, and ALiBi."""

    def __init__(self, config, index):
        super().__init__(config, index)
        self.first_heads, self.heads = first_heads(config), alibi_heads(config)
        width = len(self.heads) * self.head_dim
        del self.q_proj, self.k_proj, self.v_proj
        self.W_pack = nn.Linear(config.hidden_size, 3 * width, bias=False)

    def forward(
        self, hidden_states, attention_mask=None, position_ids=None, past_key_values=None, **kwargs
    ):
        query, key, value = (
            x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for x in self.W_pack(hidden_states).chunk(3, -1)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        # Padding on the left moves all distances of a row alike, which a softmax does not see.
        distance = torch.arange(key.shape[-2], device=key.device) - position_ids[:, None, :, None]
        bias = slopes(self.heads, self.first_heads).to(key.device)[:, None, None] * distance
        if attention_mask is None:
            attention_mask = distance <= 0
        if attention_mask.dtype == torch.bool:
            bias = bias.masked_fill(~attention_mask, torch.finfo(query.dtype).min)
        else:
            bias = bias + attention_mask
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, bias.to(query.dtype))
        return self.o_proj(mixed.transpose(1, 2).flatten(-2)), None


class AlibiBaichuanBlock(MistralDecoderLayer):
    def __init__(self, config, index):
        super().__init__(config, index)
        self.self_attn = AlibiAttention(config, index)

    def keep_heads(self, kept):
        self.self_attn.heads = [self.self_attn.heads[i] for i in kept]


class BaichuanConfig(MistralConfig):
    model_type = "baichuan"

    def __init__(self, num_attention_heads=40, num_key_value_heads=None, **kwargs):
        super().__init__(
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_key_value_heads or num_attention_heads,
            **{"sliding_window": None, **kwargs},
        )


class NormalisedHead(nn.Module):
    """A head whose rows count by their direction alone."""

    def __init__(self, vocabulary, hidden):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocabulary, hidden))

    def forward(self, x):
        return nn.functional.linear(x, nn.functional.normalize(self.weight))


class PerLayerBaichuanForCausalLM(PerLayer, MistralForCausalLM):
    config_class = BaichuanConfig
    block = AlibiBaichuanBlock
    _supports_flash_attn = _supports_flex_attn = False  # they take no bias of a head

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        if config.vocab_size == BAICHUAN2_VOCABULARY:
            self.lm_head = NormalisedHead(config.vocab_size, config.hidden_size)
