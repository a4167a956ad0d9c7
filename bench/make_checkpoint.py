"""Random-weight checkpoints of real models' shapes, for measuring memory and time, and a small one.

    python bench/make_checkpoint.py tinyllama-1.1b /tmp/tinyllama [--device cuda]

Written tensor by tensor, so that a 7B checkpoint is made in little memory; a GPU draws the numbers many
times faster (and others than a CPU does). The tokenizer is the bundled model's: texts need one, and its
ids are within every vocabulary here.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

from compressor.writing.shards import SHARD_BYTES, ShardFile, shard_names, write_index

BUNDLED = Path(__file__).parent.parent / "examples/tiny-llama"
COMMON = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}
SHAPES = {
    "llama-6m": {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "tinyllama-1.1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "llama-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}
SHAPES["tinyllama-1.1b-4-blocks"] = SHAPES["tinyllama-1.1b"] | {"num_hidden_layers": 4}
SHAPES["llama-7b-8-blocks"] = SHAPES["llama-7b"] | {"num_hidden_layers": 8}


def tensors_of(config: dict) -> dict[str, torch.Tensor]:
    """Every tensor of a Llama of this config, empty, by name."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    block = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{n}.weight": s for n, s in block.items()}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (config["vocab_size"], hidden)}
    return {n: torch.empty(s, dtype=torch.bfloat16, device="meta") for n, s in shapes.items()}


def make(name: str, folder: Path, device: str = "cpu") -> Path:
    """Write the checkpoint unless it is there, its numbers drawn on a device."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = COMMON | SHAPES[name]
    shards: list[dict[str, torch.Tensor]] = [{}]
    for tensor_name, tensor in tensors_of(config).items():
        if sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][tensor_name] = tensor
    generator = torch.Generator(device).manual_seed(0)
    for shard, file_name in zip(shards, shard_names(shards), strict=True):
        file = ShardFile(folder / file_name, shard)
        for tensor_name, tensor in shard.items():
            value = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if "norm" in tensor_name:
                value.fill_(1.0)
            else:
                value.uniform_(-0.03, 0.03, generator=generator)
            file.put(tensor_name, value.cpu())
        file.close()
    write_index(folder, shards)
    for file in BUNDLED.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    make(asked.name, asked.folder, asked.device)
