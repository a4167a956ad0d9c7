"""The config of a result: which model type it is written as, with which widths."""

import json

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.families import FAMILIES
from compressor.per_layer import make_uniform


def choose_container(checkpoint: Checkpoint, groups: set[int], container: str) -> str:
    """The model type to write: the family's own wherever its config class accepts the heads.

    groups: the numbers of KV groups that blocks have.
    """
    family = checkpoint.family
    if not family.cuts_heads and groups != {checkpoint.units["attention"]}:
        raise InputError(
            f"The heads of {family.model_type} cannot be cut in its own format, whose class has hidden "
            "size / heads channels a head; keep all of them, or use --layout padded (zeros, to "
            "evaluate it)."
        )
    counts = sorted(n * checkpoint.queries_per_group for n in groups)
    shown = " or ".join(map(str, counts))
    if family.keeps_heads(checkpoint.config) and counts != [checkpoint.heads]:
        raise InputError(
            f"The config class of {family.model_type} refuses {shown} heads with these rope settings: "
            f"{checkpoint.path} keeps its {checkpoint.heads}; cut FFN channels alone."
        )
    divides = all(checkpoint.hidden_size % count == 0 for count in counts)
    divides = divides and (len(counts) == 1 or bool(family.per_layer_settings))
    fits = not family.heads_divide_hidden or divides
    biased = any("bias" in name for name in checkpoint.block_tensors(0))
    if container == "auto":
        container = family.model_type if fits else family.container or family.model_type
    if container == family.model_type:
        if not fits:
            way = "keep a number of heads that divides it"
            raise InputError(
                f"The container {container} refuses {shown} heads at hidden size "
                f"{checkpoint.hidden_size}; "
                f"{f'use --container {family.container}' if family.container else way}."
            )
        return container
    if container == family.container:
        if biased:
            raise InputError(
                f"The container {container} has no biases, and this model has; {family.model_type} "
                f"refuses {shown} heads."
            )
        return container
    raise InputError(f"A {family.model_type} model cannot be written as {container!r}.")


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
    write_both_ropes(config)
    if container != family.model_type:
        config["model_type"] = container
        config |= family.container_config
        # From 5.0 on transformers leaves the tokenizer of a local Mistral folder alone.
        version = str(config.get("transformers_version", "0"))
        if int(version.split(".")[0]) < 5:
            config["transformers_version"] = "5.0.0"
        tokenizer = checkpoint.path / "tokenizer_config.json"
        if not (tokenizer.exists() and "tokenizer_class" in json.loads(tokenizer.read_text())):
            config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    return config


def write_both_ropes(config: dict) -> None:
    """Rotary settings as transformers reads them from 5.0 on (`rope_parameters`), and before.

    Gemma 3 has two sets: of blocks with full attention, and with a sliding window.
    """
    rope = config.get("rope_parameters") or {}
    whole = rope.get("full_attention", rope)
    if "rope_theta" in whole:
        config.setdefault("rope_theta", whole["rope_theta"])
        if "partial_rotary_factor" in whole:
            config.setdefault("partial_rotary_factor", whole["partial_rotary_factor"])
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
