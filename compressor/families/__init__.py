"""The families this package knows, looked up by the `model_type` of a config."""

from compressor.errors import InputError
from compressor.families import gpt_neox, llama, mistral, opt, phi3, qwen2, qwen3
from compressor.families.table import Family, Slice

FAMILIES = {
    m.FAMILY.model_type: m.FAMILY for m in (gpt_neox, llama, mistral, opt, phi3, qwen2, qwen3)
}

__all__ = ["FAMILIES", "Family", "Slice", "family_of"]


def family_of(model_type: str | None) -> Family:
    """The table of a model type; `InputError` names the supported ones."""
    if model_type not in FAMILIES:
        raise InputError(
            f"The model type {model_type!r} is not supported; "
            f"supported are {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[model_type]
