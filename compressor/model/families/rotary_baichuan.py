"""Baichuan and Baichuan 2 of 7B, read as the Llama models that they are but for their names.

The code that their folders bring is never run. W_pack has the queries, keys and values of all heads in
turn; Baichuan 2 divides each row of its head by its norm before use, which is done at reading.
"""

from collections.abc import Mapping
from types import SimpleNamespace

MODEL_TYPE = "baichuan"
PACKED, PARTS = "self_attn.W_pack.weight", ("q", "k", "v")
HEAD = "lm_head.weight"
BAICHUAN2_VOCABULARY = 125_696


def is_rotary(config: Mapping) -> bool:
    """The 7B models turn their queries and keys, and say how far: `max_position_embeddings`.

    The 13B ones have ALiBi, and `model_max_length` alone.
    """
    return config.get("model_type") == MODEL_TYPE and "max_position_embeddings" in config


def llama_config(config: Mapping) -> dict:
    """The config of the same model as Llama."""
    dropped = ("auto_map", "tokenizer_class")
    return {name: value for name, value in config.items() if name not in dropped} | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_key_value_heads": config.get("num_attention_heads"),
        "rope_theta": config.get("rope_theta", 10_000.0),
        "attention_bias": False,
        "mlp_bias": False,
    }


def llama_tensors(
    tensors: Mapping[str, SimpleNamespace], vocabulary: int | None
) -> dict[str, SimpleNamespace]:
    """Header entries by Llama's names; `rows` and `normalised` say what to make of what is stored."""
    entries = {}
    for name, entry in tensors.items():
        if name.endswith(PACKED) and entry.shape[0] % len(PARTS) == 0:
            for number, letter in enumerate(PARTS):
                part_name = name.replace(PACKED, f"self_attn.{letter}_proj.weight")
                entries[part_name] = one_of(entry, number, len(PARTS))
        elif name == HEAD and vocabulary == BAICHUAN2_VOCABULARY:
            entries[name] = SimpleNamespace(**vars(entry) | {"normalised": True})
        else:
            entries[name] = entry
    return entries


def one_of(entry: SimpleNamespace, number: int, parts: int) -> SimpleNamespace:
    """One of equal parts of a tensor's rows."""
    rows, nbytes = entry.shape[0] // parts, (entry.end - entry.begin) // parts
    begin = entry.begin + number * nbytes
    changes = {
        "rows": slice(number * rows, (number + 1) * rows),
        "shape": [rows, *entry.shape[1:]],
        "numel": entry.numel // parts,
        "begin": begin,
        "end": begin + nbytes,
    }
    return SimpleNamespace(**vars(entry) | changes)
