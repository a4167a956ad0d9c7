"""Writing a quantised folder from a dense one, one block in memory at a time."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from compressor.config.json_files import ESCAPED
from compressor.model.checkpoint import Checkpoint
from compressor.writing.packing import packed, quantization_config
from compressor.writing.shards import SHARD_BYTES, check_space, divided, opened, write_index
from compressor.writing.side_files import copy_side_files
from compressor.writing.tokenizer_class import name_class
from compressor.writing.write import empty

Shards = list[dict[str, torch.Tensor]]


def plan_shards(checkpoint: Checkpoint, group: int, limit: int = SHARD_BYTES) -> Shards:
    """Empty (meta) tensors of the quantised folder, by name, in shards of at most `limit` bytes."""
    matrices = checkpoint.family.projections()
    results = [{n: empty(checkpoint, n) for n in checkpoint.outer_tensors()}]
    for index in range(checkpoint.blocks):
        block = {}
        for inner in checkpoint.block_tensors(index):
            name = checkpoint.block_name(index, inner)
            tensor = empty(checkpoint, name)
            if inner not in matrices:
                block[name] = tensor
                continue
            rows, columns = tensor.shape
            scale = torch.empty(rows, columns // group, dtype=tensor.dtype, device="meta")
            block |= packed(name, tensor, scale, group)
        results.append(block)
    return divided(results, limit)


def quantized_bytes(checkpoint: Checkpoint, group: int) -> int:
    """What the tensors of the quantised folder will take."""
    return sum(t.nbytes for shard in plan_shards(checkpoint, group) for t in shard.values())


def write_quantized(
    checkpoint: Checkpoint,
    group: int,
    blocks: Iterable[dict[str, torch.Tensor]],
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """The new folder `folder`: what the blocks become, and all else as it is in the source.

    blocks: of every block in order all tensors to store, by their names inside it.
    """
    shards = plan_shards(checkpoint, group, shard_bytes)
    check_space(folder.parent, sum(t.nbytes for shard in shards for t in shard.values()))
    folder.mkdir(parents=True)
    with opened(folder, shards) as files:
        for name in checkpoint.outer_tensors():
            files[name].put(name, checkpoint.read([name])[name])
        for index, block in enumerate(blocks):
            for inner, tensor in block.items():
                name = checkpoint.block_name(index, inner)
                files[name].put(name, tensor)
            progress(index + 1, checkpoint.blocks)
    write_index(folder, shards)
    copy_side_files(checkpoint, folder)
    head = checkpoint.family.head.removesuffix(".weight")
    ignored = sorted({head, "lm_head"})  # as the files call it, and the class
    config = checkpoint.written_config | {
        "architectures": [checkpoint.family.architecture],  # the class that was read
        "quantization_config": quantization_config(group, ignored),
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8", errors=ESCAPED)
    name_class(checkpoint, folder)
