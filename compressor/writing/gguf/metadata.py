"""What a GGUF file says of the model: its architecture, widths and rotary embedding."""

from typing import Any

from compressor.errors import InputError
from compressor.model.source import Source

SCALED = {"linear": "LINEAR", "yarn": "YARN"}  # kinds of rotary scaling, by gguf's names
UNSCALED = ("default", "llama3")  # the latter is a tensor of factors (`tensors.py`)
# In a model's name they have llama.cpp treat some tokens otherwise, whatever tokenizer it has.
NAMES_OF_RULES = ("phi-3", "phi3", "jina", "modern-bert")
CONVERTER = "llama.cpp's own convert_hf_to_gguf.py may take it"


def architecture_of(source: Source) -> str:
    """`llama`, or `deci` where blocks differ; InputError for a model that neither of them computes."""
    family = source.family
    if not family.llama_like or family.joined:
        raise InputError(
            "Models that compute what Llama does (llama, mistral, nemotron-nas) are exported, and "
            f"{source.label} is of the type {family.model_type}; {CONVERTER}."
        )
    if (act := source.config.get("hidden_act", "silu")) != "silu":
        raise InputError(f"The FFNs of these architectures have silu, not {act}; {CONVERTER}.")
    if source.window:
        raise InputError(
            f"The blocks of {source.label} attend to {source.window} tokens (sliding_window), and "
            f"those of these architectures to all; {CONVERTER}."
        )
    rope = rope_of(source)
    kind = rope.get("rope_type", "default")
    if kind not in (*SCALED, *UNSCALED):
        raise InputError(
            f"The rotary scaling {kind!r} of {source.label} is not exported; {CONVERTER}."
        )
    alike = all(units == source.units for units in source.block_units)
    return "llama" if alike else "deci"


def rope_of(source: Source) -> dict:
    return source.model_config().to_dict().get("rope_parameters") or {}


def put_metadata(writer: Any, source: Source) -> None:
    """Everything that llama.cpp asks a model of these architectures for."""
    import gguf

    config, rope, units = source.config, rope_of(source), source.block_units
    groups, channels = [u["attention"] for u in units], [u["ffn"] for u in units]
    heads = [count * source.queries_per_group for count in groups]
    alike = writer.arch == "llama"
    name = source.path.resolve().name if source.path is not None else ""
    if name and not any(word in name.lower() for word in NAMES_OF_RULES):
        writer.add_name(name)
    writer.add_context_length(source.positions or 2048)
    writer.add_embedding_length(source.hidden_size)
    writer.add_block_count(source.blocks)
    writer.add_feed_forward_length(channels[0] if alike else channels)
    writer.add_head_count(heads[0] if alike else heads)
    writer.add_head_count_kv(groups[0] if alike else groups)
    writer.add_key_length(source.head_dim)
    writer.add_value_length(source.head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(source.vocabulary)
    writer.add_rope_dimension_count(source.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind in SCALED:
        writer.add_rope_scaling_type(gguf.RopeScalingType[SCALED[kind]])
        writer.add_rope_scaling_factor(rope["factor"])
        if kind == "yarn":
            known = rope.get("original_max_position_embeddings") or source.positions
            writer.add_rope_scaling_orig_ctx_len(known)
