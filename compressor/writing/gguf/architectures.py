"""Which of llama.cpp's architectures computes a model, or why none of those that are written does."""

from dataclasses import dataclass

from compressor.errors import InputError
from compressor.model.source import Source

SCALED = {"linear": "LINEAR", "yarn": "YARN"}  # kinds of rotary scaling, by gguf's names
UNSCALED = ("default", "llama3")  # the latter is a tensor of factors (`tensors.py`)
CONVERTER = "llama.cpp's own convert_hf_to_gguf.py may take it"


@dataclass(frozen=True)
class Architecture:
    """name: gguf's. paired: whether it turns channels (0, 1), (2, 3), ... together, not (0, d/2), ...
    normed: of a mixture, whether the weights of the experts that a token is sent to are to sum to one.
    per_expert: whether it asks for the width of an expert apart from that of an FFN. without: settings
    of what it does not compute.
    """

    name: str
    paired: bool = True
    normed: bool = False
    per_expert: bool = False
    without: tuple[str, ...] = ()


LLAMA, DECI = Architecture("llama"), Architecture("deci")
MIXTURES = {
    "mixtral": Architecture("llama", normed=True),
    "olmoe": Architecture("olmoe", paired=False, without=("attention_bias", "clip_qkv")),
    "qwen2_moe": Architecture("qwen2moe", paired=False, per_expert=True),
    "qwen3_moe": Architecture(
        "qwen3moe", paired=False, normed=True, per_expert=True, without=("attention_bias",)
    ),
}


def architecture_of(source: Source) -> Architecture:
    """`llama`, or `deci` where blocks differ, or that of a mixture of experts; InputError for a model
    that none of them computes.
    """
    family = source.family
    mixture = MIXTURES.get(family.model_type)
    if not mixture and (not family.llama_like or family.joined):
        raise InputError(
            "Models that compute what Llama does (llama, mistral, nemotron-nas) and mixtures of experts "
            f"({', '.join(MIXTURES)}) are exported, and {source.label} is of the type "
            f"{family.model_type}; {CONVERTER}."
        )
    if (act := source.config.get("hidden_act", "silu")) != "silu":
        raise InputError(f"The FFNs of these architectures have silu, not {act}; {CONVERTER}.")
    if source.window:
        raise InputError(
            f"The blocks of {source.label} attend to {source.window} tokens (sliding_window), and "
            f"those of these architectures to all; {CONVERTER}."
        )
    kind = rope_of(source).get("rope_type", "default")
    if kind not in (*SCALED, *UNSCALED):
        raise InputError(
            f"The rotary scaling {kind!r} of {source.label} is not exported; {CONVERTER}."
        )
    if mixture:
        check_mixture(source, mixture)
        return mixture
    alike = all(units == source.units for units in source.block_units)
    return LLAMA if alike else DECI


def check_mixture(source: Source, architecture: Architecture) -> None:
    """InputError where llama.cpp's class of such a mixture computes something else."""
    settings = source.model_config().to_dict()
    normed = settings.get("norm_topk_prob", architecture.normed)  # Mixtral has no such setting
    if normed is not architecture.normed:
        raise InputError(
            f"norm_topk_prob of {source.label} is {normed}, and llama.cpp's {architecture.name} "
            f"computes as if it were {architecture.normed}; {CONVERTER}."
        )
    if said := [name for name in architecture.without if settings.get(name)]:
        raise InputError(
            f"{said[0]} of {source.label} is {settings[said[0]]}, and llama.cpp's {architecture.name} "
            "knows nothing of it."
        )


def rope_of(source: Source) -> dict:
    return source.model_config().to_dict().get("rope_parameters") or {}
