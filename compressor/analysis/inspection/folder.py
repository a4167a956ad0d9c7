"""Reading a folder that anyone may have left: what can be said is said, the rest is a problem.

`Checkpoint` refuses what cannot be cut; here nothing is refused but a folder without a model. Only
headers and JSON are read: no pickle, no code.
"""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from compressor.analysis.inspection.files import ambiguity
from compressor.config.json_files import read_object
from compressor.config.packing import Packing
from compressor.errors import InputError
from compressor.model.configs import check_blocks
from compressor.model.experts import stacked
from compressor.model.families import FAMILIES, Family, nas
from compressor.model.families.wrappers import Wrapper, wrapper_of
from compressor.model.per_layer import KEY, check
from compressor.model.tensors import INDEX, SINGLE, completed, foreseeing, read_entries, turned
from compressor.model.weight_files import check_kinds
from compressor.model.widths import BlockWidths, block_widths
from compressor.quantization.reading import dense_entries, packing_of

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass
class Folder:
    """A folder's config and headers, and sentences about what is wrong with them.

    `written` is the config as the file has it, `config` with settings under their standard names, and
    of a `nemotron-nas` model as of the Llama model that it is, of one of texts and images (`wrapper`) as
    of the language model in it, whose tensors have its own names.
    `index` maps a tensor's name to its file, where there are shards; `stored` to its `shape`, `numel`,
    `bytes` and `dtype` (safetensors' name of it), with its name (`key`) in `file`. `tensors` are the
    same, but for packed weights, which are there as the dense ones they stand for, and for single
    experts, which are there as the stacks that transformers makes of them (`experts` then has all).
    `ambiguous` says what loaders take from different files.
    """

    path: Path
    config: dict = field(default_factory=dict)
    written: dict = field(default_factory=dict)
    wrapper: Wrapper | None = None
    ambiguous: str | None = None
    index: dict[str, str] = field(default_factory=dict)
    stored: dict[str, SimpleNamespace] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    beside: int = 0  # parameters beside the language model
    experts: dict[str, SimpleNamespace] | None = None

    @property
    def family(self) -> Family | None:
        family = FAMILIES.get(self.config.get("model_type"))
        family = family and family.of(self.config)
        return self.wrapper.inside(family) if family and self.wrapper else family

    @property
    def packing(self) -> Packing | None:
        """How weights are stored that compressed-tensors has packed."""
        return packing_of(self.config)

    @property
    def tensors(self) -> dict[str, SimpleNamespace]:
        if self.experts is not None:
            return self.experts
        return dense_entries(self.stored, self.packing) if self.packing else self.stored

    @property
    def parameters(self) -> int:
        """Elements of all floating-point tensors; other packed weights are integers."""
        return sum(t.numel for t in self.tensors.values() if t.dtype in FLOATS)

    @property
    def dtypes(self) -> dict[str, int]:
        """Elements by dtype, the most frequent first."""
        counts: Counter[str] = Counter()
        for tensor in self.stored.values():
            counts[tensor.dtype] += tensor.numel
        return dict(counts.most_common())

    @property
    def head_dim(self) -> int | None:
        config, family = self.config, self.family
        heads = config.get(family.heads_key) if family else None
        hidden = config.get("hidden_size")
        return config.get("head_dim") or (hidden // heads if heads and hidden else None)

    def blocks(self) -> list[dict[str, SimpleNamespace]]:
        """Tensors of every block, by their name inside it, in the order of the blocks' numbers.

        Without a family's table, blocks are what the most tensors with a number in their name have
        in front of it.
        """
        numbered = re.compile(r"(.+?)\.(\d+)\.(.+)")
        by_prefix: dict[str, dict[int, dict]] = defaultdict(lambda: defaultdict(dict))
        for name, tensor in self.tensors.items():
            if match := numbered.fullmatch(name):
                prefix, number, inner = match.groups()
                by_prefix[prefix][int(number)][inner] = tensor
        if not by_prefix:
            return []
        most = max(by_prefix, key=lambda prefix: sum(map(len, by_prefix[prefix].values())))
        chosen = by_prefix.get(self.family.layers, {}) if self.family else by_prefix[most]
        return [chosen[number] for number in sorted(chosen)]

    def widths(self) -> list[BlockWidths] | None:
        """Widths of every block from the tensors' shapes; None where no table says how."""
        opaque = self.config.get("quantization_config") and not self.packing
        if self.family is None or not self.head_dim or opaque:
            return None
        try:
            return [
                block_widths(
                    tensors,
                    self.family.in_block(self.config, block),
                    self.head_dim,
                    config=self.config,
                )
                for block, tensors in enumerate(self.blocks())
            ]
        except InputError as error:
            self.problems.append(str(error))
            return None


def open_folder(path: Path) -> Folder:
    """Whatever the folder holds. `InputError` if that is no model at all."""
    if not path.is_dir():
        raise InputError(f"There is no folder {str(path)!r}; give a checkpoint folder.")
    check_kinds(path)
    folder = Folder(path)
    if (path / "config.json").exists():
        folder.config = folder.written = read_json(folder, "config.json")
    else:
        folder.problems.append("There is no config.json, so no loader knows what the tensors are.")
    check_blocks(path, folder.written)
    translate(folder)
    folder.ambiguous = ambiguity(path, folder.written)
    if folder.ambiguous:
        folder.problems.append(folder.ambiguous)
    files = weight_files(folder)
    if not files and not folder.config:
        raise InputError(
            f"{path} holds neither a config.json nor safetensors: it is no checkpoint."
        )
    for file in files:
        try:
            entries, _ = read_entries(path / file)
        except InputError as error:
            folder.problems.append(str(error))
            continue
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            folder.stored[name] = SimpleNamespace(
                shape=entry["shape"],
                numel=math.prod(entry["shape"]),
                bytes=end - begin,
                begin=begin,
                end=end,
                dtype=entry["dtype"],
                file=path / file,
                key=name,
            )
    if folder.wrapper:
        texts = folder.wrapper.tensors(folder.stored, None)
        read = {entry.key for entry in texts.values()}
        beside = {name: entry for name, entry in folder.stored.items() if name not in read}
        folder.beside = sum(t.numel for t in beside.values() if t.dtype in FLOATS)
        folder.stored = texts | beside
    held = {entry.key for entry in folder.stored.values()}
    absent = [name for name in folder.index if name not in held]
    if absent:
        folder.problems.append(
            f"{INDEX} names {len(absent)} tensor(s) that no shard here holds, {absent[0]} first."
        )
    if folder.family is not None:
        folder.config = folder.family.standard(folder.config)
        ends = folder.family.not_read
        ahead = {*foreseeing(folder.stored, folder.family)}  # noted where it is read
        read = {n: t for n, t in folder.stored.items() if n not in ahead and not n.endswith(ends)}
        folder.stored = turned(completed(read, folder.family), folder.family)
        try:
            check(folder.config, folder.family)
        except InputError as error:
            folder.problems.append(str(error))
            del folder.config[KEY]
        if folder.family.experts:
            stack(folder, folder.family)
        if folder.stored:
            check_blocks(path, folder.config, len(folder.blocks()))
    if folder.config and folder.family is None:
        folder.problems.append(
            f"The model type {folder.config.get('model_type')!r} has no table here (there are "
            f"{', '.join(sorted(FAMILIES))}), so its widths are shown as shapes."
        )
    return folder


def translate(folder: Folder) -> None:
    """Make `config` that of the model that is read of the folder, where that is of another type."""
    folder.wrapper = wrapper_of(folder.written)
    read = nas.llama_config if nas.is_nas(folder.written) else None
    if folder.wrapper:
        read = folder.wrapper.config
    try:
        folder.config = read(folder.written) if read else folder.written
    except InputError as error:
        folder.wrapper = None
        folder.problems.append(str(error))


def stack(folder: Folder, family: Family) -> None:
    """Have single experts be as the stacks that they make; a problem where they make none."""
    count = folder.config.get(family.ffn_width_key) or 0
    try:
        folder.experts = stacked(folder.stored, family, count, str(folder.path))
    except InputError as error:
        folder.problems.append(str(error))


def weight_files(folder: Folder) -> list[str]:
    """Names of the safetensors files, as transformers looks for them."""
    path = folder.path
    if (path / SINGLE).exists():
        return [SINGLE]
    if (path / INDEX).exists():
        weight_map = read_json(folder, INDEX).get("weight_map")
        if isinstance(weight_map, dict):
            folder.index = weight_map
            return sorted({Path(str(file)).name for file in weight_map.values()})
        folder.problems.append(f"{INDEX} has no weight_map.")
    files = sorted(p.name for p in path.glob("*.safetensors"))
    pickles = sorted(p.name for pattern in PICKLES for p in path.glob(pattern))
    if pickles and not files:
        folder.problems.append(
            f"The weights are pickles ({pickles[0]}), which can run code and are not opened; "
            "convert them to safetensors."
        )
    elif not files:
        folder.problems.append(f"There are no weights: neither {SINGLE} nor {INDEX}.")
    else:
        folder.problems.append(
            f"Loaders look for {SINGLE} or {INDEX} and find neither; {files[0]} is read here."
        )
    return files


def read_json(folder: Folder, name: str) -> dict:
    try:
        return read_object(folder.path / name)
    except InputError as error:
        folder.problems.append(str(error))
        return {}
