"""Writing a checkpoint folder that stock transformers and vLLM load.

The config is the original text with the changed keys patched, never re-serialised by a config
class; side files are copied byte for byte; tensors are written as they are cut.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from itertools import repeat
from pathlib import Path

import torch

from compressor.config.json_files import ESCAPED
from compressor.cutting.cut import cut_block
from compressor.model.checkpoint import Checkpoint
from compressor.model.families import FAMILIES
from compressor.model.heads import choose_container
from compressor.model.per_layer import code_of, needs_code
from compressor.planning.plan import Plan
from compressor.writing.containers import patched_config, zeros_of
from compressor.writing.layouts import check_built, check_layout, layout_of
from compressor.writing.padding import Padding, heads_left, padded_block, paddings
from compressor.writing.per_layer import layer_config, make_per_layer
from compressor.writing.shards import SHARD_BYTES, check_space, divided, opened, write_index
from compressor.writing.side_files import copy_side_files
from compressor.writing.tokenizer_class import name_class


def write(
    checkpoint: Checkpoint,
    plan: Plan,
    folder: Path,
    layout: str = "uniform",
    container: str = "auto",
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
    changes: Iterable[dict[str, torch.Tensor]] | None = None,
) -> str:
    """Cut `checkpoint` by `plan` into the new folder; returns the container's model type.

    A `per-layer` result whose blocks turn out equal is written `uniform`. `changes` brings, of every
    block in order, the tensors that go out in place of the cut ones (a repair's); it is read one block
    at a time.
    """
    plan.check(checkpoint)
    family = checkpoint.family
    check_layout(plan, layout, checkpoint)
    units, layout = plan.widest(), layout_of(plan, layout, family)
    check_built(checkpoint, layout)
    padding = [None] * checkpoint.blocks
    if layout == "padded":
        padding = paddings(plan, checkpoint)
        units = padding[0].units
    groups = {width["attention"] for width in (plan.widths() if layout == "per-layer" else [units])}
    chosen = choose_container(checkpoint, groups, container, served=layout == "uniform")
    zeros = zeros_of(checkpoint, chosen)
    shards = plan_shards(checkpoint, plan, padding, zeros, shard_bytes)
    check_space(folder.parent, sum(t.nbytes for shard in shards for t in shard.values()))
    folder.mkdir(parents=True)
    with opened(folder, shards) as files:
        for name in checkpoint.outer_tensors():
            files[name].put(name, checkpoint.read([name])[name])
        changes = repeat({}) if changes is None else changes
        for index, (kept, changed) in enumerate(zip(plan.blocks, changes, strict=False)):
            weights = checkpoint.read_block(index)
            block = cut_block(weights, checkpoint, kept, changed)
            if padding[index]:
                block = padded_block(block, checkpoint, padding[index])
            for name, tensor in as_stored(checkpoint, index, block, zeros).items():
                files[name].put(name, tensor)
            del block, weights
            progress(index + 1, checkpoint.blocks)
    write_index(folder, shards)
    copy_side_files(checkpoint, folder)
    config = patched_config(checkpoint, units, chosen)
    if needs_code(family, layout):
        if layout == "padded":
            entries = None
        else:
            rep, heads = checkpoint.queries_per_group, heads_left(plan, checkpoint)
            entries = layer_config(family, plan.widths(), rep, heads)
            config["head_dim"] = checkpoint.head_dim
        built_by = family if chosen == family.model_type else FAMILIES[chosen]
        make_per_layer(config, built_by, entries)
        for own in code_of(built_by):
            shutil.copyfile(own, folder / own.name)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8", errors=ESCAPED)
    name_class(checkpoint, folder, moved=chosen != family.model_type)
    return chosen


def plan_shards(
    checkpoint: Checkpoint,
    plan: Plan,
    padding: list[Padding | None],
    zeros: dict[str, torch.Tensor],
    limit: int,
) -> list[dict[str, torch.Tensor]]:
    """Empty tensors of the result, by name, divided into shards of at most `limit` bytes.

    zeros: what every block has besides its own.
    """
    names = checkpoint.outer_tensors()
    results = [{n: empty(checkpoint, n) for n in names}]
    for index, kept in enumerate(plan.blocks):
        names = checkpoint.block_tensors(index)
        block = {n: empty(checkpoint, checkpoint.block_name(index, n)) for n in names}
        block = cut_block(block, checkpoint, kept)
        if padding[index]:
            block = padded_block(block, checkpoint, padding[index])
        results.append(as_stored(checkpoint, index, block, zeros))
    return divided(results, limit)


def as_stored(
    checkpoint: Checkpoint,
    index: int,
    block: dict[str, torch.Tensor],
    zeros: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """A cut block's tensors, and those that its container has besides, as files hold and name them."""
    named = {checkpoint.block_name(index, inner): t for inner, t in block.items()}
    found = {name: checkpoint.as_stored(name, t) for name, t in named.items()}
    return found | {checkpoint.block_name(index, inner): t for inner, t in zeros.items()}


def empty(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    entry = checkpoint.tensors[name]
    return torch.empty(entry.shape, dtype=entry.dtype, device="meta")
