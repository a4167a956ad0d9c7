"""The config of Llama-shaped models whose blocks have FFN widths of their own, in `block_configs`.

This file stands beside the weights. vLLM reads the config by it (`--trust-remote-code`, or without that
where the package `compressor` is installed) and builds the model by its own class, `DeciLMForCausalLM`;
transformers builds it by `modeling_nas.py`.
"""

from transformers import MistralConfig


class Entry(dict):
    """A JSON object whose values are attributes, too: vLLM asks for `block.ffn.intermediate_size`."""

    def __init__(self, values):
        super().__init__(
            {name: Entry(v) if isinstance(v, dict) else v for name, v in values.items()}
        )

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def ffn_width(entry, hidden_size):
    """FFN channels of a block: `intermediate_size`, or the multiple of 256 that `ffn_mult` says."""
    if "ffn_mult" not in entry:
        return entry["intermediate_size"]
    return -(-int(2 * entry["ffn_mult"] * hidden_size / 3) // 256) * 256


class NasConfig(MistralConfig):
    """block_configs: of every block, `attention` with `n_heads_in_group`, and `ffn`, as `ffn_width` has
    it. (Llama's config refuses a hidden size that is no multiple of the heads, so it is not the base.)
    """

    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), attention_bias=False, mlp_bias=False, **kwargs):
        super().__init__(**{"sliding_window": None, **kwargs})
        self.block_configs = [Entry(block) for block in block_configs]
        self.attention_bias, self.mlp_bias = attention_bias, mlp_bias
