"""What a result is written as: its model type, and the config with the new widths."""

import json
from collections.abc import Mapping

import torch

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.families import FAMILIES, Family
from compressor.per_layer import make_uniform

DROPPED_DEFAULTS = ("architectures", "dtype", "rope_parameters", "transformers_version")


def choose_container(
    checkpoint: Checkpoint, groups: set[int], container: str = "auto", served: bool = True
) -> str:
    """The model type to write: the family's own where what loads the result takes the heads.

    groups: the numbers of KV groups that blocks have. container: what was asked for, or `auto`. served:
    whether vLLM is to load it, as it does models of equal blocks.
    """
    family, other = checkpoint.family, checkpoint.family.container
    own, counts = family.model_type, head_counts(checkpoint, groups)
    against = {own: refusal_of_own(checkpoint, counts)}
    if other:
        against[other.model_type] = refusal_of_other(checkpoint, counts)
    if container not in ("auto", *against):
        raise InputError(f"A {own} model cannot be written as {container!r}.")
    if container != "auto":
        choices = [(container, against[container])]
    else:
        unserved = refusal_of_vllm(checkpoint, counts) if served else None
        choices = [(own, against[own] or unserved), *list(against.items())[1:]]
        if counts == [checkpoint.heads]:
            choices.append((own, against[own]))  # as the source is
    for name, reason in choices:
        if reason is None:
            return name
    first, *others = dict.fromkeys(reason for _, reason in choices)
    reasons = [first, *(reason[0].lower() + reason[1:] for reason in others)]
    raise InputError(f"{'; '.join(reasons)}; {way_out(checkpoint, against, container)}.")


def takes(checkpoint: Checkpoint, groups: set[int], container: str, served: bool) -> bool:
    """Whether there is a type to write so many KV groups as."""
    try:
        choose_container(checkpoint, groups, container, served)
    except InputError:
        return False
    return True


def why_heads_stay(checkpoint: Checkpoint) -> str:
    """What keeps all heads of a model, as a sentence; nothing if they can go."""
    try:
        choose_container(checkpoint, {1})
    except InputError as reason:
        return str(reason)
    return ""


def head_counts(checkpoint: Checkpoint, groups: set[int]) -> list[int]:
    return sorted(n * checkpoint.queries_per_group for n in groups)


def shown(counts: list[int]) -> str:
    return f"{' or '.join(map(str, counts))} heads"


def refusal_of_own(checkpoint: Checkpoint, counts: list[int]) -> str | None:
    """Why the family's own class does not have these numbers of heads."""
    family, cut = checkpoint.family, counts != [checkpoint.heads]
    if cut and not family.cuts_heads:
        return (
            f"The heads of {family.model_type} cannot be cut in its own format, whose class has hidden "
            "size / heads channels a head"
        )
    if cut and family.keeps_heads(checkpoint.config):
        return (
            f"The config class of {family.model_type} refuses {shown(counts)} with these rope "
            "settings"
        )
    return undivided(family, checkpoint, counts)


def refusal_of_other(checkpoint: Checkpoint, counts: list[int]) -> str | None:
    """Why the family's container does not compute what the model does with these numbers of heads."""
    other = checkpoint.family.container
    if not other.biases and any("bias" in name for name in checkpoint.block_tensors(0)):
        return f"The container {other.model_type} has no biases, and this model has"
    if lacking := other.unlike(checkpoint.config):
        return f"The container {other.model_type} {lacking}, and this model has"
    return undivided(FAMILIES[other.model_type], checkpoint, counts)


def undivided(family: Family, checkpoint: Checkpoint, counts: list[int]) -> str | None:
    """Why a config class that wants a hidden size that the heads divide refuses these."""
    divides = all(checkpoint.hidden_size % count == 0 for count in counts)
    alike = len(counts) == 1 or bool(family.per_layer_settings)
    if not family.heads_divide_hidden or (divides and alike):
        return None
    return (
        f"The container {family.model_type} refuses {shown(counts)} at hidden size "
        f"{checkpoint.hidden_size}"
    )


def refusal_of_vllm(checkpoint: Checkpoint, counts: list[int]) -> str | None:
    """Why vLLM's class of the family does not load these numbers of heads."""
    family, head_dim = checkpoint.family, checkpoint.head_dim
    if family.serves_heads(checkpoint.hidden_size, counts, head_dim):
        return None
    return (
        f"vLLM's class of {family.model_type} has hidden size / heads channels a head, so it does not "
        f"load {shown(counts)} of {head_dim} at hidden size {checkpoint.hidden_size}"
    )


def way_out(checkpoint: Checkpoint, against: Mapping[str, str | None], container: str) -> str:
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
    if family.keeps_heads(checkpoint.config):
        return f"keep all {checkpoint.heads} and cut FFN channels alone"
    return "keep a number of heads that divides it"


def container_notes(checkpoint: Checkpoint, written: Checkpoint, layout: str) -> list[str]:
    """What to say of the type that a result was written as."""
    own, chosen = checkpoint.family, written.family
    if chosen is not own:
        if layout == "per-layer":
            why = f"{own.model_type}'s config class refuses numbers of heads that differ"
        elif own.heads_divide_hidden:
            why = f"{own.model_type}'s config class refuses this number of heads"
        else:
            why = f"vLLM's class of {own.model_type} does not load this number of heads"
        zeros = "; the biases that this type has besides are zeros" * bool(own.container.zeros)
        return [f"Written as {chosen.model_type}: {why}; the arithmetic is the same{zeros}."]
    unserved = refusal_of_vllm(written, [written.heads])
    return [f"{unserved}."] if unserved and layout != "per-layer" else []


def zeros_of(checkpoint: Checkpoint, container: str) -> dict[str, torch.Tensor]:
    """The biases that every block of this model type has and the source's have not, by inner name."""
    if container == checkpoint.family.model_type:
        return {}
    return {
        name: torch.zeros(checkpoint.hidden_size, dtype=checkpoint.dtype)
        for name in checkpoint.family.container.zeros
    }


def patched_config(checkpoint: Checkpoint, units: dict[str, int], container: str) -> dict:
    """The original config with new widths, both spellings of what transformers renamed."""
    family, config = checkpoint.family, dict(checkpoint.written_config)
    make_uniform(config, family)
    config.pop("auto_map", None)  # the class of a folder's own code knows no cut widths
    if not family.ffn_fixed:
        config[family.spelled(config, family.ffn_width_key)] = units["ffn"]
    if not family.heads_fixed:
        config[family.heads_key] = units["attention"] * checkpoint.queries_per_group
        config[family.kv_heads_key] = units["attention"]
        config["head_dim"] = checkpoint.head_dim
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    config["torch_dtype"] = config["dtype"] = dtype
    config["architectures"] = [FAMILIES[container].architecture]  # the class that was read
    write_both_ropes(config, FAMILIES[container].spellings)
    if container != family.model_type:
        for name in family.container.without:
            config.pop(name, None)
        config["model_type"] = container
        config |= defaults_of(checkpoint, config, container) | family.container.settings
        # From 5.0 on transformers leaves the tokenizer of a local Mistral folder alone.
        version = str(config.get("transformers_version", "0"))
        if int(version.split(".")[0]) < 5:
            config["transformers_version"] = "5.0.0"
        tokenizer = checkpoint.path / "tokenizer_config.json"
        if not (tokenizer.exists() and "tokenizer_class" in json.loads(tokenizer.read_text())):
            config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    return config


def defaults_of(checkpoint: Checkpoint, config: Mapping, container: str) -> dict:
    """Settings that a config does not say, where the container's class would take them otherwise."""
    from transformers import AutoConfig

    own, other = checkpoint.model_config().to_dict(), AutoConfig.for_model(container).to_dict()
    return {
        name: own[name]
        for name, value in other.items()
        if name in own
        and own[name] != value
        and name not in config
        and name not in DROPPED_DEFAULTS
        and not name.startswith("_")
    }


def write_both_ropes(config: dict, spellings: Mapping[str, str]) -> None:
    """Rotary settings as transformers reads them from 5.0 on (`rope_parameters`), and before.

    spellings: what the type's class called them before, where that was not `rope_theta` and
    `partial_rotary_factor`. Gemma 3 has two sets: of blocks with full attention, and with a sliding
    window.
    """
    rope = config.get("rope_parameters") or {}
    whole = rope.get("full_attention", rope)
    if "rope_theta" in whole:
        for name in ("rope_theta", "partial_rotary_factor"):
            if name in whole:
                config.setdefault(spellings.get(name, name), whole[name])
        scaling = {k: v for k, v in whole.items() if k != "rope_theta"}
        if scaling.get("rope_type", "default") != "default":
            config.setdefault("rope_scaling", scaling)
        if "sliding_attention" in rope:
            config.setdefault("rope_local_base_freq", rope["sliding_attention"]["rope_theta"])
    elif not rope and "rope_theta" in config:
        scaling = dict(config.get("rope_scaling") or {})
        scaling["rope_type"] = scaling.pop("type", scaling.get("rope_type", "default"))
        whole = {"rope_theta": config["rope_theta"], **scaling}
        if "rope_local_base_freq" in config:
            local = {"rope_theta": config["rope_local_base_freq"], "rope_type": "default"}
            whole = {"full_attention": whole, "sliding_attention": local}
        config["rope_parameters"] = whole
