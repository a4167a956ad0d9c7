"""GPT-NeoX and Pythia: q, k and v of each head side by side, biases, attention and FFN in parallel.

Its class has hidden / heads channels a head.
"""

from compressor.model.families.table import Family, Slice

FAMILY = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    ffn=(
        Slice("mlp.dense_h_to_4h.weight", 0, "c"),
        Slice("mlp.dense_h_to_4h.bias", 0, "c", optional=True),
        Slice("mlp.dense_4h_to_h.weight", 1, "c"),
    ),
    attention=(
        Slice("attention.query_key_value.weight", 0, "qkv"),
        Slice("attention.query_key_value.bias", 0, "qkv", optional=True),
        Slice("attention.dense.weight", 1, "q"),
    ),
    layers="gpt_neox.layers",
    embedding="gpt_neox.embed_in.weight",
    head="embed_out.weight",
    up="mlp.dense_h_to_4h",
    gate=None,
    parallel_key="use_parallel_residual",
    spellings={"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    constants={"hidden_act": "gelu"},
    # Masks that old files hold.
    not_read=("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"),
    heads_fixed=True,
    own_widths=False,
)
