"""Models whose blocks have widths of their own, from `per_layer_config`.

This file stands beside the weights and needs nothing but transformers:

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

Attention and FFN are transformers' own; they are built from the settings of their block.
"""

import copy

from torch import nn
from transformers import (
    CohereForCausalLM,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    GemmaForCausalLM,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    Olmo2ForCausalLM,
    Phi3ForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    SmolLM3ForCausalLM,
    Starcoder2ForCausalLM,
)

WIDTHS = ("intermediate_size", "num_attention_heads", "num_key_value_heads")


def block_config(config, index):
    """The config as block `index` has it."""
    per_layer = getattr(config, "per_layer_config", None)
    if per_layer is None:
        return config
    if not isinstance(per_layer, dict):
        return per_layer[index]
    # transformers before 5 knows no such key, and keeps what it read.
    own = copy.copy(config)
    for number, settings in per_layer.items():
        if int(number) == index:
            for name, value in settings.items():
                setattr(own, name, value)
    return own


class Shared:
    """The model's config, so that a change of it reaches a block, behind the block's own settings."""

    def __init__(self, config, own):
        vars(self).update(own, shared=config)

    def __getattr__(self, name):
        if name.startswith("__") or name == "shared":
            raise AttributeError(name)
        return getattr(self.shared, name)


class PerLayer:
    """Takes the place of a model's equal blocks."""

    layers = "layers"
    block = None  # the class of the new blocks, if not the model's own
    block_config = staticmethod(block_config)

    def __init__(self, config, *args, **kwargs):
        super().__init__(self.first(config), *args, **kwargs)
        config._attn_implementation = self.config._attn_implementation
        own_configs = [self.block_config(config, i) for i in range(config.num_hidden_layers)]
        base = getattr(self, "model", self.base_model)  # Gemma 3 calls it otherwise in version 4
        block = self.block or type(getattr(base, self.layers)[0])
        blocks = nn.ModuleList(block(own, index) for index, own in enumerate(own_configs))
        setattr(base, self.layers, blocks)
        self.config = base.config = config
        for own, block in zip(own_configs, blocks, strict=True):
            for module in block.modules():
                if hasattr(module, "config"):
                    module.config = Shared(config, {key: getattr(own, key) for key in WIDTHS})
        self.post_init()

    @classmethod
    def first(cls, config):
        """A config that the model's own blocks, which are then replaced, can be built from."""
        return cls.block_config(config, 0)


class PerLayerCohereForCausalLM(PerLayer, CohereForCausalLM):
    pass


class PerLayerGemmaForCausalLM(PerLayer, GemmaForCausalLM):
    pass


class PerLayerGemma2ForCausalLM(PerLayer, Gemma2ForCausalLM):
    pass


class PerLayerGemma3ForCausalLM(PerLayer, Gemma3ForCausalLM):
    pass


class PerLayerGraniteForCausalLM(PerLayer, GraniteForCausalLM):
    pass


class PerLayerLlamaForCausalLM(PerLayer, LlamaForCausalLM):
    pass


class PerLayerMistralForCausalLM(PerLayer, MistralForCausalLM):
    pass


class PerLayerOlmo2ForCausalLM(PerLayer, Olmo2ForCausalLM):
    pass


class PerLayerPhi3ForCausalLM(PerLayer, Phi3ForCausalLM):
    pass


class PerLayerQwen2ForCausalLM(PerLayer, Qwen2ForCausalLM):
    pass


class PerLayerQwen3ForCausalLM(PerLayer, Qwen3ForCausalLM):
    pass


class PerLayerSmolLM3ForCausalLM(PerLayer, SmolLM3ForCausalLM):
    pass


class PerLayerStarcoder2ForCausalLM(PerLayer, Starcoder2ForCausalLM):
    pass
