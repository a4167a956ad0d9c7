"""Llama whose blocks have FFN widths of their own, from `block_configs`; vLLM has this class, too.

This file stands beside the weights, with `configuration_nas.py` and `modeling_per_layer.py`, and needs
nothing but transformers:

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
"""

import copy

from transformers import LlamaForCausalLM

from .configuration_nas import NasConfig, ffn_width
from .modeling_per_layer import PerLayer


class DeciLMForCausalLM(PerLayer, LlamaForCausalLM):
    config_class = NasConfig

    @staticmethod
    def block_config(config, index):
        own = copy.copy(config)
        own.intermediate_size = ffn_width(config.block_configs[index]["ffn"], config.hidden_size)
        return own
