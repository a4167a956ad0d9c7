"""Small mixtures of experts, and the same with experts one behind the other in their files."""

import shutil
from pathlib import Path

from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

FUSED = "fused"
MIXTURE = {"num_experts": 6, "num_experts_per_tok": 2}
# Of blocks that are of several kinds: those of attention, and what the heads of each are.
HYBRID = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "head_dim": 8,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
HYBRIDS = ("qwen3_5_text",)  # of one FFN a block
SHARED = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 24}
# Of those with latent attention, and of DeepSeek's experts: the first block has one FFN.
LATENT = {
    "num_key_value_heads": 8,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
}
GROUPED = {
    "num_hidden_layers": 4,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
}
# What a tiny model of a type has beside the sizes that all have.
MIXTURES: dict[str, dict] = {
    "deepseek_v2": LATENT
    | GROUPED
    | {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 2},
    "deepseek_v3": LATENT | GROUPED,
    "glm4_moe": GROUPED | {"use_qk_norm": True},
    "mixtral": MIXTURE,
    "qwen2_moe": MIXTURE | SHARED,
    "qwen3_5_moe_text": HYBRID | MIXTURE | SHARED,
    "qwen3_moe": MIXTURE | {"moe_intermediate_size": 16, "norm_topk_prob": True},
    "qwen3_next": HYBRID | MIXTURE | SHARED,
    "olmoe": MIXTURE,
}
# Of several kinds of blocks: what engines and older versions know of them was not tried.
SEVERAL_KINDS = (
    *(*HYBRIDS, "qwen3_5_moe_text", "qwen3_next"),
    *("deepseek_v2", "deepseek_v3", "glm4_moe"),
)


def fuse(folder: Path, fused: Path) -> Path:
    """A copy of a mixture whose file holds experts as transformers' modules do."""
    shutil.copytree(folder, fused)
    model = AutoModelForCausalLM.from_pretrained(folder)
    save_file(model.state_dict(), fused / "model.safetensors", {"format": "pt"})
    return fused
