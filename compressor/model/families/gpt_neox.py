"""GPT-NeoX and Pythia: q, k and v of each head side by side, biases, attention and FFN in parallel.

Its class has hidden / heads channels a head.
"""

from compressor.model.families.table import FOURFOLD_FFN, Family, Slice, inward

FAMILY = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    ffn=FOURFOLD_FFN,
    attention=(
        *inward("attention.query_key_value", "qkv"),
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
