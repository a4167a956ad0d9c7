"""What a GGUF file says of the model: its architecture, widths and rotary embedding."""

from typing import Any

from compressor.model.source import Source
from compressor.model.widths import model_widths
from compressor.writing.gguf.architectures import DECI, SCALED, Architecture, rope_of

# In a model's name they have llama.cpp treat some tokens otherwise, whatever tokenizer it has.
NAMES_OF_RULES = ("phi-3", "phi3", "jina", "modern-bert")


def put_metadata(writer: Any, source: Source, architecture: Architecture) -> None:
    """Everything that llama.cpp asks a model of these architectures for."""
    import gguf

    config, rope, units = source.config, rope_of(source), source.block_units
    groups = [u["attention"] for u in units]
    channels = [block.ffn for block in model_widths(source).blocks]
    heads = [count * source.queries_per_group for count in groups]
    alike = architecture is not DECI
    name = source.path.resolve().name if source.path is not None else ""
    if name and not any(word in name.lower() for word in NAMES_OF_RULES):
        writer.add_name(name)
    writer.add_context_length(source.positions or 2048)
    writer.add_embedding_length(source.hidden_size)
    writer.add_block_count(source.blocks)
    writer.add_feed_forward_length(channels[0] if alike else channels)
    if source.family.experts:
        put_experts(writer, source, architecture, channels[0])
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


def put_experts(writer: Any, source: Source, architecture: Architecture, channels: int) -> None:
    """Of a mixture: how many experts there are, how many a token is sent to, and their widths."""
    experts = source.family.experts
    writer.add_expert_count(source.units["ffn"])
    writer.add_expert_used_count(source.config[experts.per_token])
    if architecture.per_expert:
        writer.add_expert_feed_forward_length(channels)
    if experts.shared:
        _, shared = source.tensors[source.block_name(0, experts.shared)].shape
        writer.add_expert_shared_feed_forward_length(shared)
