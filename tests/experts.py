"""Small mixtures of experts, and the same with experts one behind the other in their files."""

import shutil
from pathlib import Path

from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

FUSED = "fused"
MIXTURE = {"num_experts": 6, "num_experts_per_tok": 2}
# What a tiny model of a type has beside the sizes that all have.
MIXTURES: dict[str, dict] = {
    "mixtral": MIXTURE,
    "qwen2_moe": MIXTURE
    | {
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
    },
    "qwen3_moe": MIXTURE | {"moe_intermediate_size": 16, "norm_topk_prob": True},
    "olmoe": MIXTURE,
}


def fuse(folder: Path, fused: Path) -> Path:
    """A copy of a mixture whose file holds experts as transformers' modules do."""
    shutil.copytree(folder, fused)
    model = AutoModelForCausalLM.from_pretrained(folder)
    save_file(model.state_dict(), fused / "model.safetensors", {"format": "pt"})
    return fused
