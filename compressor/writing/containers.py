"""What a result is written as: its model type, and the config with the new widths, of each block too."""

from collections.abc import Mapping

import torch

from compressor.config.layouts import NAS, PER_LAYER
from compressor.model.families import FAMILIES, Family, nas
from compressor.model.heads import refusal_of_vllm, refusal_of_width
from compressor.model.per_layer import HEADS, KEY, auto_map, class_name
from compressor.model.source import Source
from compressor.planning.plan import Plan
from compressor.writing.padding import heads_left
from compressor.writing.tokenizer_class import config_of

DROPPED_DEFAULTS = ("architectures", "dtype", "rope_parameters", "transformers_version")


def container_notes(checkpoint: Source, written: Source, layout: str) -> list[str]:
    """What to say of the type that a result was written as."""
    family, chosen = checkpoint.family, written.family
    if layout == NAS:
        said = (
            f"its blocks have FFN widths of their own, which vLLM's class {nas.ARCHITECTURE} builds"
        )
        zeros = "; o_proj has biases there, which are zeros" * bool(
            chosen.model_type != family.model_type and family.container and family.container.zeros
        )
        return [f"Written as {nas.MODEL_TYPE}: {said}{zeros}."]
    if chosen.model_type != family.model_type:
        if layout == PER_LAYER:
            why = f"{family.model_type}'s config class refuses numbers of heads that differ"
        elif family.heads_divide_hidden:
            why = f"{family.model_type}'s config class refuses this number of heads"
            why += f" at hidden size {written.hidden_size}" * bool(checkpoint.channels)
        else:
            why = f"vLLM's class of {family.model_type} does not load this number of heads"
        zeros = "; the biases that this type has besides are zeros" * bool(family.container.zeros)
        what = f"The language model is written as {chosen.model_type}" if family.inside else ""
        what = what or f"Written as {chosen.model_type}"
        return [f"{what}: {why}; the arithmetic is the same{zeros}."]
    if layout == PER_LAYER:
        return []
    unserved = refusal_of_vllm(written, [written.heads]), refusal_of_width(written)
    return [f"{reason}." for reason in unserved if reason]


def zeros_of(checkpoint: Source, container: str) -> dict[str, torch.Tensor]:
    """The biases that every block of this model type has and the source's have not, by inner name."""
    if container == checkpoint.family.model_type:
        return {}
    return {
        name: torch.zeros(checkpoint.hidden_size, dtype=checkpoint.dtype)
        for name in checkpoint.family.container.zeros
    }


def patched_config(checkpoint: Source, units: dict[str, int], container: str) -> dict:
    """The original config with new widths, both spellings of what transformers renamed."""
    family, config = checkpoint.family, dict(checkpoint.written_config)
    make_uniform(config, family)
    config.pop("auto_map", None)  # the class of a folder's code knows no cut widths
    if family.experts and family.experts.split:
        width = units["ffn"] // checkpoint.config[family.ffn_width_key]
        config[family.experts.width_key] = width
        if shared := family.experts.of_shared(checkpoint.config):
            config[family.experts.shared_count] = shared // width
    elif not family.ffn_fixed:
        config[family.spelled(config, family.ffn_width_key)] = units["ffn"]
    if family.experts:
        count = config[family.spelled(config, family.ffn_width_key)]
        config |= dict.fromkeys(family.experts.counted, count)
    if not family.heads_fixed and units["attention"]:
        config[family.heads_key] = units["attention"] * checkpoint.queries_per_group
        config[family.kv_heads_key] = units["attention"]
        config["head_dim"] = checkpoint.head_dim
    if family.foresees and family.foresees[1] in config:
        config[family.foresees[1]] = 0
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
        if checkpoint.path is None or "tokenizer_class" not in config_of(checkpoint.path):
            config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    return config


def defaults_of(checkpoint: Source, config: Mapping, container: str) -> dict:
    """Settings that a config does not say, where the container's class would take them otherwise."""
    from transformers import AutoConfig

    settings, other = checkpoint.model_config().to_dict(), AutoConfig.for_model(container).to_dict()
    return {
        name: settings[name]
        for name, value in other.items()
        if name in settings
        and settings[name] != value
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


def layer_config(plan: Plan, source: Source) -> dict[str, dict]:
    """What config.json says of every block of the `per-layer` layout: its widths and, where heads have
    slopes, which of the first heads it has left.
    """
    family, heads = source.family, heads_left(plan, source)
    return {
        str(block): {
            family.ffn_width_key: width["ffn"],
            family.heads_key: width["attention"] * source.queries_per_group,
            family.kv_heads_key: width["attention"],
            **({HEADS: left} if family.alibi else {}),
        }
        for block, (width, left) in enumerate(zip(plan.widths(), heads, strict=True))
    }


def make_per_layer(config: dict, family: Family) -> None:
    """Have a config name the class that builds blocks of their own widths."""
    config["architectures"] = [class_name(family)]
    config["auto_map"] = auto_map(family)
    config |= family.per_layer_settings


def make_uniform(config: dict, family: Family) -> None:
    """Take from a config its entries and what `make_per_layer` gave it."""
    if config.pop(KEY, None) is not None:
        config["architectures"] = [family.architecture]
        for key in ("auto_map", *family.per_layer_settings):
            config.pop(key, None)
