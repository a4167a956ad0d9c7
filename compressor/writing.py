"""Writing a checkpoint folder that stock transformers and vLLM load.

The config is the original text with the changed keys patched, never re-serialised by a config
class; side files are copied byte for byte; tensors are written as they are cut.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager
from itertools import repeat
from pathlib import Path

import torch

from compressor.checkpoint import DTYPES, INDEX, SINGLE, Checkpoint
from compressor.cut import Padding, cut_block, heads_left, paddings, widest
from compressor.errors import InputError, MachineError
from compressor.families import FAMILIES, Family
from compressor.per_layer import (
    SHIPPED,
    code_of,
    has_uniform,
    layer_config,
    make_per_layer,
    make_uniform,
    needs_code,
)
from compressor.plan import Plan

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
DTYPE_NAMES |= {torch.int32: "I32", torch.int64: "I64"}  # of packed weights
LAYOUTS = ("uniform", "per-layer", "padded")
SHARD_BYTES = 5_000_000_000
# Weights in any other format would contradict the new ones; the card is written anew.
NOT_COPIED = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx"}


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
    units, layout = widest(plan), layout_of(plan, layout, family)
    check_built(checkpoint, layout)
    padding = [None] * checkpoint.blocks
    if layout == "padded":
        padding = paddings(plan, checkpoint)
        units = padding[0].units
    groups = {width["attention"] for width in (plan.widths() if layout == "per-layer" else [units])}
    chosen = choose_container(checkpoint, groups, container)
    shards = plan_shards(checkpoint, plan, padding, shard_bytes)
    check_space(folder.parent, sum(t.nbytes for shard in shards for t in shard.values()))
    folder.mkdir(parents=True)
    with opened(folder, shards) as files:
        for name in checkpoint.outer_tensors():
            files[name].put(name, checkpoint.read([name])[name])
        changes = repeat({}) if changes is None else changes
        for index, (kept, changed) in enumerate(zip(plan.blocks, changes, strict=False)):
            weights = checkpoint.read_block(index)
            block = cut_block(weights, checkpoint, kept, padding[index], changed)
            for inner, tensor in block.items():
                name = checkpoint.block_name(index, inner)
                files[name].put(name, checkpoint.as_stored(name, tensor))
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
    (folder / "config.json").write_text(text, encoding="utf-8")
    return chosen


def check_layout_name(layout: str) -> None:
    if layout not in LAYOUTS:
        raise InputError(f"The layout {layout!r} is not one of {', '.join(LAYOUTS)}.")


def check_layout(plan: Plan, layout: str, checkpoint: Checkpoint) -> None:
    check_layout_name(layout)
    widths, family = plan.widths(), checkpoint.family
    if layout == "uniform" and not has_uniform(family):
        whole = {"attention": checkpoint.heads, "ffn": checkpoint.config[family.ffn_width_key]}
        if any(width != whole for width in widths):
            raise InputError(no_uniform(family))
    if layout == "uniform" and any(w != widths[0] for w in widths):
        raise InputError(
            "The plan has blocks of different widths (global allocation, or protected blocks), which "
            "no stock model class loads; plan without, or use --layout per-layer (loads with code of "
            "its own) or padded (zeros, to evaluate it)."
        )


def no_uniform(family: Family) -> str:
    return (
        f"transformers' class of {family.model_type} has {family.ffn_per_hidden} x hidden FFN channels "
        "and as many heads as fit into the hidden size, always, and its slopes (ALiBi) are those of all "
        "heads, so no cut of it is in the uniform layout; use --layout per-layer (loads with code of "
        "its own) or padded (zeros, to evaluate it)."
    )


def check_built(checkpoint: Checkpoint, layout: str) -> None:
    if layout == "per-layer" and not checkpoint.family.own_widths:
        raise InputError(
            f"There is no code for {checkpoint.family.model_type} blocks of different widths; use "
            "--layout uniform, or padded (zeros, to evaluate it)."
        )


def layout_of(plan: Plan, layout: str, family: Family) -> str:
    """What a plan is written as: `per-layer` is `uniform` where all blocks are alike."""
    widths = plan.widths()
    equal = has_uniform(family) and all(width == widths[0] for width in widths)
    return "uniform" if layout == "per-layer" and equal else layout


def choose_container(checkpoint: Checkpoint, groups: set[int], container: str) -> str:
    """The model type to write: the family's own wherever its config class accepts the heads.

    groups: the numbers of KV groups that blocks have.
    """
    family = checkpoint.family
    fixed = family.heads_fixed and not family.alibi
    if fixed and groups != {checkpoint.units["attention"]}:
        raise InputError(
            f"The heads of {family.model_type} cannot be cut in its own format, whose class has hidden "
            "size / heads channels a head; keep all of them, or use --layout padded (zeros, to "
            "evaluate it)."
        )
    counts = sorted(n * checkpoint.queries_per_group for n in groups)
    shown = " or ".join(map(str, counts))
    if family.keeps_heads(checkpoint.config) and counts != [checkpoint.heads]:
        raise InputError(
            f"The config class of {family.model_type} refuses {shown} heads with these rope settings: "
            f"{checkpoint.path} keeps its {checkpoint.heads}; cut FFN channels alone."
        )
    divides = all(checkpoint.hidden_size % count == 0 for count in counts)
    divides = divides and (len(counts) == 1 or bool(family.per_layer_settings))
    fits = not family.heads_divide_hidden or divides
    biased = any("bias" in name for name in checkpoint.block_tensors(0))
    if container == "auto":
        container = family.model_type if fits else family.container or family.model_type
    if container == family.model_type:
        if not fits:
            way = "keep a number of heads that divides it"
            raise InputError(
                f"The container {container} refuses {shown} heads at hidden size "
                f"{checkpoint.hidden_size}; "
                f"{f'use --container {family.container}' if family.container else way}."
            )
        return container
    if container == family.container:
        if biased:
            raise InputError(
                f"The container {container} has no biases, and this model has; {family.model_type} "
                f"refuses {shown} heads."
            )
        return container
    raise InputError(f"A {family.model_type} model cannot be written as {container!r}.")


def patched_config(checkpoint: Checkpoint, units: dict[str, int], container: str) -> dict:
    """The original config with new widths, both spellings of what transformers renamed."""
    family, config = checkpoint.family, dict(checkpoint.written_config)
    make_uniform(config, family)
    config.pop("auto_map", None)  # the class of a folder's own code knows no cut widths
    if not family.ffn_fixed:
        config[family.spelled(config, family.ffn_width_key)] = units["ffn"]
    if not family.heads_fixed:
        config[family.heads_key] = units["attention"] * checkpoint.queries_per_group
        config[family.kv_heads_key] = units["attention"]
        config["head_dim"] = checkpoint.head_dim
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    config["torch_dtype"] = config["dtype"] = dtype
    write_both_ropes(config)
    if container != family.model_type:
        config["model_type"] = container
        config["architectures"] = [FAMILIES[container].architecture]
        config |= family.container_config
        # From 5.0 on transformers leaves the tokenizer of a local Mistral folder alone.
        version = str(config.get("transformers_version", "0"))
        if int(version.split(".")[0]) < 5:
            config["transformers_version"] = "5.0.0"
        tokenizer = checkpoint.path / "tokenizer_config.json"
        if not (tokenizer.exists() and "tokenizer_class" in json.loads(tokenizer.read_text())):
            config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    return config


def write_both_ropes(config: dict) -> None:
    """Rotary settings as transformers reads them from 5.0 on (`rope_parameters`), and before.

    Gemma 3 has two sets: of blocks with full attention, and with a sliding window.
    """
    rope = config.get("rope_parameters") or {}
    whole = rope.get("full_attention", rope)
    if "rope_theta" in whole:
        config.setdefault("rope_theta", whole["rope_theta"])
        if "partial_rotary_factor" in whole:
            config.setdefault("partial_rotary_factor", whole["partial_rotary_factor"])
        scaling = {k: v for k, v in whole.items() if k != "rope_theta"}
        if scaling.get("rope_type", "default") != "default":
            config.setdefault("rope_scaling", scaling)
        if "sliding_attention" in rope:
            config.setdefault("rope_local_base_freq", rope["sliding_attention"]["rope_theta"])
    elif not rope and "rope_theta" in config:
        scaling = dict(config.get("rope_scaling") or {})
        scaling["rope_type"] = scaling.pop("type", scaling.get("rope_type", "default"))
        whole = {"rope_theta": config["rope_theta"], **scaling}
        if "rope_local_base_freq" in config:
            local = {"rope_theta": config["rope_local_base_freq"], "rope_type": "default"}
            whole = {"full_attention": whole, "sliding_attention": local}
        config["rope_parameters"] = whole


def check_space(folder: Path, needed: int) -> None:
    """Refuse to start what the disk cannot hold."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed * 1.02 + (1 << 24):
        raise MachineError(
            f"{existing} has {free / 1e9:.2f} GB free, and the result needs {needed / 1e9:.2f} GB; "
            "free some space or choose another DEST."
        )


def copy_side_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Tokenizer, generation config, chat template, licences: byte for byte.

    Of a model that runs by its folder's code without that, and without what names a class in it.
    """
    for file in checkpoint.path.iterdir():
        skip = file.suffix in NOT_COPIED or file.name in ("config.json", "README.md", *SHIPPED)
        skip = skip or (checkpoint.coded and file.suffix == ".py")
        if file.is_file() and not skip and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)
    if checkpoint.coded:
        file = folder / "tokenizer_config.json"
        config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        config.pop("auto_map", None)
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def plan_shards(
    checkpoint: Checkpoint, plan: Plan, padding: list[Padding | None], limit: int
) -> list[dict[str, torch.Tensor]]:
    """Empty (meta) tensors of the result, by name, divided into shards of at most `limit` bytes."""
    names = checkpoint.outer_tensors()
    results = [{n: empty(checkpoint, n) for n in names}]
    for index, kept in enumerate(plan.blocks):
        names = checkpoint.block_tensors(index)
        block = {n: empty(checkpoint, checkpoint.block_name(index, n)) for n in names}
        block = cut_block(block, checkpoint, kept, padding[index])
        named = {checkpoint.block_name(index, n): t for n, t in block.items()}
        results.append({name: checkpoint.as_stored(name, t) for name, t in named.items()})
    return divided(results, limit)


def divided(
    results: Iterable[dict[str, torch.Tensor]], limit: int
) -> list[dict[str, torch.Tensor]]:
    """The tensors of all results, by name, in shards of at most `limit` bytes."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in (item for result in results for item in result.items()):
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > limit:
            shards.append({})
        shards[-1][name] = tensor
    return shards


def empty(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    entry = checkpoint.tensors[name]
    return torch.empty(entry.shape, dtype=entry.dtype, device="meta")


@contextmanager
def opened(folder: Path, shards: list[dict[str, torch.Tensor]]):
    """The new files of all shards, by the name of each tensor they are to hold."""
    with ExitStack() as stack:
        files = {}
        for shard, file_name in zip(shards, shard_names(shards), strict=True):
            file = ShardFile(folder / file_name, shard)
            stack.callback(file.close)
            files |= dict.fromkeys(shard, file)
        yield files


def shard_names(shards: list) -> list[str]:
    if len(shards) == 1:
        return [SINGLE]
    return [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]


def write_index(folder: Path, shards: list[dict[str, torch.Tensor]]) -> None:
    """The index that several shards need."""
    if len(shards) == 1:
        return
    tensors = [t for shard in shards for t in shard.values()]
    metadata = {
        "total_size": sum(t.nbytes for t in tensors),
        "total_parameters": sum(t.numel() for t in tensors),
    }
    names = zip(shards, shard_names(shards), strict=True)
    weight_map = {name: file for shard, file in names for name in shard}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


class ShardFile:
    """One safetensors file whose header is known before its tensors: they are written one by one.

    safetensors' own writer wants all tensors at once, which for a shard is gigabytes of memory.
    """

    def __init__(self, path: Path, tensors: dict[str, torch.Tensor]):
        # Wide types first, so that every tensor begins at a multiple of its element size.
        ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
        header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, tensor in ordered:
            begin, end = end, end + tensor.nbytes
            dtype = DTYPE_NAMES[tensor.dtype]
            shape = list(tensor.shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self.header, self.begin = header, 8 + len(text)
        self.file = path.open("wb")
        self.file.write(len(text).to_bytes(8, "little") + text)
        self.file.truncate(self.begin + end)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        if list(tensor.shape) != self.header[name]["shape"]:
            raise AssertionError(f"{name}: {list(tensor.shape)} was announced otherwise")
        self.file.seek(self.begin + self.header[name]["data_offsets"][0])
        self.file.write(tensor.contiguous().flatten().view(torch.uint8).numpy())

    def close(self) -> None:
        self.file.close()


def publish(folder: Path, final: Path) -> None:
    """Make a complete folder appear under its name: flush all to disk, then rename.

    A folder of that name is moved aside first and removed when the new one stands.
    """
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    former = final.with_name(final.name + ".old")
    if final.exists():
        shutil.rmtree(former, ignore_errors=True)
        final.rename(former)
    folder.rename(final)
    shutil.rmtree(former, ignore_errors=True)
