"""`nemotron-nas`: Llama-shaped models whose blocks have FFN widths of their own, as vLLM serves them.

config.json lists the blocks in `block_configs`, the schema of `DeciLMForCausalLM`: attention with
`num_attention_heads // n_heads_in_group` KV heads and an FFN of `intermediate_size` channels or, what
stands for a multiple of 256, `ffn_mult`. Query heads are one number for all blocks. Tensors have Llama's
names, so a folder is read as the Llama model, of blocks of their own widths, that it is.
"""

from collections.abc import Mapping, Sequence

from compressor.errors import InputError

MODEL_TYPE, ARCHITECTURE, KEY = "nemotron-nas", "DeciLMForCausalLM", "block_configs"
STEP = 256  # of the widths that `ffn_mult` stands for
UNREAD = ("no_op", "replace_with_linear", "sparsify", "window_length", "num_sink_tokens")


def register() -> None:
    """Have transformers know the model type; vLLM calls this, as a plugin (pyproject.toml)."""
    from transformers import AutoConfig

    from compressor.model.families.configuration_nas import NasConfig

    AutoConfig.register(MODEL_TYPE, NasConfig, exist_ok=True)


def is_nas(config: Mapping) -> bool:
    return config.get("model_type") == MODEL_TYPE


def block_entries(widths: Sequence[int], queries_per_group: int, hidden: int) -> list[dict]:
    """`block_configs` of blocks with these FFN widths and equal attention.

    As `ffn_mult` where all can be: more loaders read that, llama.cpp's converter among them.
    """
    multiples = all(width % STEP == 0 for width in widths)
    plain = {"no_op": False, "replace_with_linear": False}

    def ffn(width: int) -> dict:
        # In the middle of what is rounded up to the width.
        mult = round(1.5 * (width - STEP / 2) / hidden, 6)
        return {"ffn_mult": mult} if multiples else {"intermediate_size": width}

    return [
        {"attention": {"n_heads_in_group": queries_per_group, **plain}, "ffn": ffn(w) | plain}
        for w in widths
    ]


def llama_config(config: Mapping) -> dict:
    """The config of the same model as Llama or, where that class refuses the heads, as Mistral.

    InputError for blocks that this package has no form for: without attention or FFN, or with another
    number of KV heads than the rest.
    """
    entries = config.get(KEY)
    count, hidden = config.get("num_hidden_layers"), config.get("hidden_size", 0)
    if not isinstance(entries, list) or len(entries) != count:
        raise InputError(
            f"A {MODEL_TYPE} model has a list of {count} blocks in {KEY}, one for each of "
            f"num_hidden_layers, and this config has {entries!r:.60}."
        )
    widths = [width_of(entry, block, hidden) for block, entry in enumerate(entries)]
    in_group = {entry["attention"]["n_heads_in_group"] for entry in entries}
    if len(in_group) > 1:
        raise InputError(
            f"The blocks have {' and '.join(map(str, sorted(in_group)))} query heads to a KV head "
            f"({KEY}), and blocks are read that all have the same."
        )
    heads, (queries,) = config.get("num_attention_heads", 0), in_group
    alike = not heads or hidden % heads == 0 or bool(config.get("attention_bias"))
    dropped = (KEY, "auto_map")
    return {name: value for name, value in config.items() if name not in dropped} | {
        "model_type": "llama" if alike else "mistral",
        "architectures": ["LlamaForCausalLM" if alike else "MistralForCausalLM"],
        "num_key_value_heads": heads // queries,
        "intermediate_size": max(widths),
        **({} if alike else {"sliding_window": None}),
        **({} if len({*widths}) == 1 else {"per_layer_config": of_each(widths)}),
    }


def of_each(widths: Sequence[int]) -> dict[str, dict]:
    return {str(block): {"intermediate_size": width} for block, width in enumerate(widths)}


def width_of(entry, block: int, hidden: int) -> int:
    """FFN channels of a block; InputError for one that is no attention and FFN."""
    from compressor.model.families.configuration_nas import ffn_width  # imports transformers

    try:
        attention, ffn = entry["attention"], entry["ffn"]
        given = [name for part in (attention, ffn) for name in UNREAD if part.get(name)]
        groups, width = attention["n_heads_in_group"], ffn_width(ffn, hidden)
        whole = all(isinstance(n, int) and n > 0 for n in (groups, width))
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{KEY} says of block {block} {entry!r:.120}; it needs attention with n_heads_in_group, and "
            "ffn with intermediate_size or ffn_mult."
        ) from error
    if given:
        raise InputError(
            f"{KEY} gives block {block} {given[0]}, and blocks are read that have attention and FFN."
        )
    if not whole:
        raise InputError(
            f"{KEY} says of block {block} {entry!r:.120}; widths are positive numbers."
        )
    return width
