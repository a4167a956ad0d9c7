"""Which numbers of heads can be written: what the family's class, its container and vLLM take."""

from collections.abc import Mapping

from compressor.config.layouts import NAS, UNIFORM
from compressor.errors import InputError
from compressor.model.families import FAMILIES, Family
from compressor.model.source import Source


def choose_container(
    checkpoint: Source, groups: set[int], container: str = "auto", layout: str = UNIFORM
) -> str:
    """The model type to write: the family's own where what loads the result takes the heads.

    groups: the numbers of KV groups that blocks have. container: what was asked for, or `auto`. layout:
    vLLM is to load models of equal blocks by the type's class, and those of `nas` by its own for them.
    """
    if layout == NAS:
        container = llama_like(checkpoint, container)
    family, other = checkpoint.family, checkpoint.family.container
    family_type = family.model_type
    counts = sorted(n * checkpoint.queries_per_group for n in groups)
    against = {family_type: refusal_of_own(checkpoint, counts)}
    if other:
        against[other.model_type] = refusal_of_other(checkpoint, counts)
    if container not in ("auto", *against):
        raise InputError(f"A {family_type} model cannot be written as {container!r}.")
    if container != "auto":
        choices = [(container, against[container])]
    else:
        unserved = refusal_of_vllm(checkpoint, counts) if layout == UNIFORM else None
        choices = [(family_type, against[family_type] or unserved), *list(against.items())[1:]]
        if counts == [checkpoint.heads]:
            choices.append((family_type, against[family_type]))  # as the source is
    for name, reason in choices:
        if reason is None:
            return name
    first, *others = dict.fromkeys(reason for _, reason in choices)
    reasons = [first, *(reason[0].lower() + reason[1:] for reason in others)]
    raise InputError(f"{'; '.join(reasons)}; {way_out(checkpoint, against, container)}.")


def why_refused(
    checkpoint: Source, groups: set[int], container: str = "auto", layout: str = UNIFORM
) -> str:
    """Why there is no type to write so many KV groups as, as a sentence; nothing if there is one."""
    try:
        choose_container(checkpoint, groups, container, layout)
    except InputError as reason:
        return str(reason)
    return ""


def other_layouts(family: Family) -> str:
    """Which layouts hold a cut of this family, where the one that was asked for does not."""
    if family.experts:
        return "use --layout uniform"
    if family.inside or not family.own_widths:
        return "use --layout uniform, or padded (zeros, to evaluate it)"
    return "use --layout uniform, or per-layer, which transformers alone loads"


def llama_like(checkpoint: Source, container: str = "auto") -> str:
    """The container of the nas layout, `auto` for a choice; InputError for a model that does not compute
    what vLLM's class of such blocks does.
    """
    family, config = checkpoint.family, checkpoint.config
    other = family.container and FAMILIES[family.container.model_type]
    instead = other_layouts(family)
    if family.inside:
        raise InputError(
            f"The nas layout is not for models inside of a {family.inside}; {instead}."
        )
    if not family.llama_like and not (other and other.llama_like):
        raise InputError(
            "The nas layout is for models that compute what Llama does (llama, mistral, phi3, qwen2), "
            f"not for {family.model_type}; {instead}."
        )
    if (act := config.get("hidden_act", "silu")) != "silu":
        raise InputError(
            f"The nas layout is for FFNs with silu, the one that vLLM's class has, not {act}; {instead}."
        )
    if family.llama_like and checkpoint.window:
        raise InputError(
            f"The model's blocks attend to {checkpoint.window} tokens (sliding_window), and those of "
            f"the nas layout to all; {instead}."
        )
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    turned = config.get("partial_rotary_factor", rope.get("partial_rotary_factor")) or 1.0
    if "short_factor" in rope or turned != 1:
        raise InputError(
            "The model's rotary embedding (partial, or longrope) is none that vLLM's class of the nas "
            f"layout computes; {instead}."
        )
    return container if family.llama_like else other.model_type


def shown(counts: list[int]) -> str:
    return f"{' or '.join(map(str, counts))} heads"


def whole(checkpoint: Source) -> str | None:
    """Why all heads of this model stay, where some of others of its family could go."""
    family, config = checkpoint.family, checkpoint.config
    return family.couples_heads(config) or family.keeps_heads(config)


def refusal_of_own(checkpoint: Source, counts: list[int]) -> str | None:
    """Why the family's own class does not have these numbers of heads."""
    family, cut = checkpoint.family, counts != [checkpoint.heads]
    if cut and not family.cuts_heads:
        return (
            f"The heads of {family.model_type} cannot be cut in its own format, whose class has hidden "
            "size / heads channels a head"
        )
    if cut and (why := whole(checkpoint)):
        return f"The heads of {family.model_type} cannot be cut: {why}"
    return undivided(family, checkpoint, counts)


def refusal_of_other(checkpoint: Source, counts: list[int]) -> str | None:
    """Why the family's container does not compute what the model does with these numbers of heads."""
    other = checkpoint.family.container
    if not other.biases and any("bias" in name for name in checkpoint.block_tensors(0)):
        return f"The container {other.model_type} has no biases, and this model has"
    if lacking := other.unlike(checkpoint.config):
        return f"The container {other.model_type} {lacking}, and this model has"
    return undivided(FAMILIES[other.model_type], checkpoint, counts)


def undivided(family: Family, checkpoint: Source, counts: list[int]) -> str | None:
    """Why a config class that wants a hidden size that the heads divide refuses these."""
    divides = all(checkpoint.hidden_size % count == 0 for count in counts)
    alike = len(counts) == 1 or bool(family.per_layer_settings)
    if not family.heads_divide_hidden or (divides and alike):
        return None
    return (
        f"The container {family.model_type} refuses {shown(counts)} at hidden size "
        f"{checkpoint.hidden_size}"
    )


def refusal_of_vllm(checkpoint: Source, counts: list[int]) -> str | None:
    """Why vLLM's class of the family does not load these numbers of heads."""
    family, head_dim = checkpoint.family, checkpoint.head_dim
    if family.serves_heads(checkpoint.hidden_size, counts, head_dim):
        return None
    return (
        f"vLLM's class of {family.model_type} has hidden size / heads channels a head, so it does not "
        f"load {shown(counts)} of {head_dim} at hidden size {checkpoint.hidden_size}"
    )


def refusal_of_width(checkpoint: Source) -> str | None:
    """Why vLLM's class of the family does not load these FFN channels."""
    times, width = checkpoint.family.served_ffn, checkpoint.units["ffn"]
    if times is None or width == times * checkpoint.hidden_size:
        return None
    return (
        f"vLLM's class of {checkpoint.family.model_type} has {times} x hidden FFN channels, so it does "
        f"not load {width} at hidden size {checkpoint.hidden_size}; transformers does"
    )


def way_out(checkpoint: Source, against: Mapping[str, str | None], container: str) -> str:
    """What to do where no type takes the heads."""
    family = checkpoint.family
    accepting = next((name for name, reason in against.items() if reason is None), None)
    if container == "auto" and accepting:
        return (
            f"keep all {checkpoint.heads} (FFN channels can go), or use --container {accepting}, which "
            "transformers loads and vLLM does not"
        )
    if accepting:
        return f"use --container {accepting}"
    if not family.cuts_heads:
        return "keep all of them, or use --layout padded (zeros, to evaluate it)"
    if whole(checkpoint):
        return f"keep all {checkpoint.heads} and cut FFN channels alone"
    return "keep a number of heads that divides it"


def check_differing(checkpoint: Source, container: str) -> None:
    """Refuse blocks of their own numbers of heads, where every number must divide the hidden size."""
    family = checkpoint.family
    if not family.heads_divide_hidden or family.per_layer_settings:
        return
    if container == family.model_type or any(
        "bias" in name for name in checkpoint.block_tensors(0)
    ):
        raise InputError(
            f"The config class of {family.model_type} refuses numbers of heads that differ between "
            f"blocks. --layout per-layer writes {family.container.model_type} in its place, which has "
            "no biases: leave --container out, or, for a model with biases, use --layout uniform or "
            "padded."
        )
