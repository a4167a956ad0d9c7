"""The families this package knows, looked up by the `model_type` of a config."""

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module

from compressor.errors import InputError
from compressor.model.families.table import Family, Slice

MODULES = (
    "alibi_baichuan",
    "bloom",
    "cohere",
    "deepseek_v2",
    "deepseek_v3",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm4_moe",
    "gpt2",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "olmoe",
    "opt",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_moe",
    "qwen3_next",
    "smollm3",
    "starcoder2",
)
# Types that no table can say, and why.
LLAMA_4 = (
    "its experts read what their router has multiplied, in matrices stored as [in, out], and in larger "
    "ones every other block has an FFN of another width"
)
UNLIKE = {"llama4": LLAMA_4, "llama4_text": LLAMA_4}
TABLES = [import_module(f"{__name__}.{module}").FAMILY for module in MODULES]
FAMILIES: dict[str, Family] = {family.model_type: family for family in TABLES}

__all__ = ["FAMILIES", "Family", "Slice", "family_of"]


def family_of(config: Mapping) -> Family:
    """The table of a config's model type, as models of this config have it; `InputError` names the
    supported types, the nearest first.
    """
    model_type = config.get("model_type")
    if reason := UNLIKE.get(str(model_type)):
        raise InputError(
            f"The model type {model_type!r} is not supported: {reason}; see docs/families.md."
        )
    if model_type not in FAMILIES:
        from compressor.model.families.wrappers import WRAPPERS

        near = get_close_matches(str(model_type), [*FAMILIES, *WRAPPERS], n=1)
        nearest = f"the nearest is {near[0]!r}; " if near else ""
        raise InputError(
            f"The model type {model_type!r} is not supported; {nearest}supported are "
            f"{', '.join(sorted(FAMILIES))}, and of models of texts and images "
            f"{', '.join(sorted(WRAPPERS))}; see docs/families.md."
        )
    return FAMILIES[model_type].of(config)
