"""Baichuan-13B and Baichuan2-13B: q, k and v in one matrix, a gated FFN, ALiBi.

transformers has no class for them, and their own code is not run: the package's runs them, and goes out
with whatever is cut from them. The 7B, which have rotary embeddings, are Llama (`rotary_baichuan.py`).
"""

from compressor.model.families.table import GATED_FFN, Family, Slice

FAMILY = Family(
    model_type="baichuan",
    architecture="BaichuanForCausalLM",
    ffn=GATED_FFN,
    attention=(
        Slice("self_attn.W_pack.weight", 0, "q k v"),
        Slice("self_attn.o_proj.weight", 1, "q"),
    ),
    fit=lambda layer, kept: layer.keep_heads(kept),
    spellings={"max_position_embeddings": "model_max_length"},
    heads_fixed=True,
    alibi=True,
    stock=False,
)
