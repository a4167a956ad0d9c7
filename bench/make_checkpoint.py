"""Random-weight checkpoints of real models' shapes, for measuring memory and time, and a small one.

    python bench/make_checkpoint.py tinyllama-1.1b /tmp/tinyllama [--device cuda]
    python bench/make_checkpoint.py llama-70b-2-blocks /tmp/slice

`-N-blocks` behind a shape's name makes as many of its blocks. Written tensor by tensor, so that a large
checkpoint is made in little memory; a GPU draws the numbers many times faster (and others than a CPU
does). The tokenizer is the bundled model's: texts need one, and its
ids are within every vocabulary here.
"""

import argparse
import json
import re
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
    "llama-13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
    "llama-70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "llama-405b": {
        "vocab_size": 128256,
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
    },
    "llama-405b-half": {  # half as wide: of its own width, a repair of one block does not fit here
        "hidden_size": 8192,
        "intermediate_size": 26624,
        "num_hidden_layers": 126,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
    },
}
SLICE = re.compile(r"(.+)-(\d+)-blocks")


def shape(name: str) -> dict:
    """The config of a shape, or of so many of its blocks."""
    found = SLICE.fullmatch(name)
    base, blocks = found.groups() if found else (name, None)
    if base not in SHAPES:
        raise SystemExit(f"There is no shape {base}; there are {', '.join(SHAPES)}.")
    return COMMON | SHAPES[base] | ({"num_hidden_layers": int(blocks)} if blocks else {})


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


def make(name: str, folder: Path, device: str = "cpu", drawn: bool = True) -> Path:
    """Write the checkpoint unless it is there, its numbers drawn on a device; or its headers alone, with
    holes in the place of numbers, which take no room on a disk.
    """
    if (folder / "config.json").exists():
        return folder
    config = shape(name)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, torch.Tensor]] = [{}]
    for tensor_name, tensor in tensors_of(config).items():
        if sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][tensor_name] = tensor
    generator = torch.Generator(device).manual_seed(0)
    for shard, file_name in zip(shards, shard_names(shards), strict=True):
        file = ShardFile(folder / file_name, shard)
        for tensor_name, tensor in shard.items() if drawn else ():
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
    parser.add_argument("name", help=f"{', '.join(SHAPES)}; also NAME-2-blocks")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    make(asked.name, asked.folder, asked.device)
