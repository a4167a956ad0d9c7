"""Qwen2 and Qwen2.5: biases on q, k and v, cut with their heads.

vLLM's class has hidden / heads channels a head, so what lost heads goes out as Llama with biases, whose
output projection has one too: zeros. Llama knows no sliding windows.
"""

from collections.abc import Mapping

from compressor.model.families.table import GATED_FFN, GROUPED_ATTENTION, Container, Family


def unlike_llama(config: Mapping) -> str | None:
    if config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or ()):
        return "has no sliding windows"
    return None


FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    ffn=GATED_FFN,
    attention=GROUPED_ATTENTION,
    served_by_division=True,
    container=Container(
        "llama",
        settings={"attention_bias": True, "mlp_bias": False},
        without=("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"),
        zeros=("self_attn.o_proj.bias",),
        biases=True,
        unlike=unlike_llama,
    ),
)
