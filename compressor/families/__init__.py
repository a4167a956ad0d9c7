"""The families this package knows, looked up by the `model_type` of a config."""

from collections.abc import Mapping

from compressor.errors import InputError
from compressor.families import bloom, llama, mistral, phi3, qwen2, qwen3
from compressor.families.table import Family, Slice

FAMILIES = {m.FAMILY.model_type: m.FAMILY for m in (bloom, llama, mistral, phi3, qwen2, qwen3)}

__all__ = ["FAMILIES", "Family", "Slice", "family_of", "find"]


def find(config: Mapping) -> Family | None:
    """The table of a model by its config, if there is one."""
    return FAMILIES.get(config.get("model_type"))


def family_of(config: Mapping) -> Family:
    """The table of a model by its config; `InputError` names the supported types."""
    family = find(config)
    if family is None:
        raise InputError(
            f"The model type {config.get('model_type')!r} is not supported; "
            f"supported are {', '.join(sorted(FAMILIES))}."
        )
    return family
