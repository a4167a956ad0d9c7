"""Reading a checkpoint folder: config, tokenizer and lazily mapped safetensors.

What is read is what transformers' `from_pretrained` would read. Whatever else it may be is refused when
the folder is opened, from JSON and headers alone: no tensor is read (but a head, where one is stored
beside the embedding that the config ties it to), nothing is executed, no pickle is touched.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import torch

from compressor.config.json_files import read_object
from compressor.errors import InputError, MendableError
from compressor.model.configs import (
    check_blocks,
    check_patterns,
    check_task,
    load_config,
    made,
    read_as_given,
    settings,
)
from compressor.model.empty_model import EmptyModel, UnfitError
from compressor.model.experts import are_stacked, stacked
from compressor.model.families import family_of
from compressor.model.families.translations import translation_of
from compressor.model.fingerprint import change, fingerprint, states
from compressor.model.per_layer import check as check_per_layer
from compressor.model.per_layer import open_config
from compressor.model.streamed import shards_of
from compressor.model.tensors import (
    DTYPES,
    PACKED_DTYPES,
    check_dtypes,
    completed,
    foreseeing,
    read_header,
    read_tensors,
    stored,
    turned,
)
from compressor.model.weight_files import check_adapters, check_index, check_kinds, weight_files
from compressor.model.wrapped import Wrapped
from compressor.text.tokenizer import open_tokenizer

NUMBER = re.compile(r"[0-9]{1,18}")  # of a block; more digits than Python takes are none


class Checkpoint(Wrapped):
    """A Hugging Face folder, opened read-only.

    `config` has settings under their standard names; `written_config` is the file's. Where no class of
    transformers has the model's names, but one computes the same (`translation`), all is as that one has
    it. `tensors` maps a name to its header entry: `shape`, `dtype`, `key`, its name in `file`, and
    `begin`, `end`, in bytes from the start of it; `rows` if it is a part of what is stored, `normalised`
    if each row is divided by its norm, `transposed` if files hold it as [in, out]. Shards are opened
    anew on every read: a kept handle would keep every page ever touched in resident memory.
    """

    dtypes = DTYPES

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.label = str(self.path)
        self.notes: list[str] = []  # what a user should know of how the folder is read
        if not self.path.is_dir():
            raise InputError(
                f"There is no folder {str(self.path)!r}; give a checkpoint folder, or ORG/NAME of the "
                "hub."
            )
        check_kinds(self.path)
        check_adapters(self.path)
        with read_as_given():
            self._open()

    def _open(self) -> None:
        self._open_config()
        self.tensors: dict[str, SimpleNamespace] = {}
        held = {}
        # What goes along with a language model may be of other dtypes.
        dtypes = self.dtypes | PACKED_DTYPES if self.wrapper else self.dtypes
        for file in weight_files(self.path, self.written_config):
            header = read_header(self.path / file, dtypes, self.family.not_read)
            held[file] = list(header)
            self.tensors |= header
        self._leave_out()
        check_index(self.path, held, self.family.not_read)
        # What is written may have other files.
        self.written_config.pop("transformers_weights", None)
        self._find_weights()
        self.tensors = turned(completed(self.tensors, self.family), self.family)
        self._stack_experts()
        self.settle_head()
        self._check_count()
        self.check_tensors()
        self._check_units()
        self._compare_dtypes()
        self.states = states(self._files())

    # -- what the files hold ----------------------------------------------------------------------

    @property
    def header_bytes(self) -> int:
        """What files have before their first tensor."""
        begins: dict[Path, int] = {}
        for entry in stored(self.all_entries):
            begins[entry.file] = min(entry.begin, begins.get(entry.file, entry.begin))
        return sum(begins.values())

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype to compute in and to name: what the config says, if anything is stored so, and
        otherwise that of the most weights."""
        counted: Counter[torch.dtype] = Counter()
        for entry in self.tensors.values():
            counted[entry.dtype] += entry.numel
        said = self.model_config().dtype
        return said if said in counted else counted.most_common(1)[0][0]

    # -- reading ----------------------------------------------------------------------------------

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The named tensors, mapped from the files on the CPU; not to be written to."""
        return read_tensors(self.tensors, names)

    def file_of(self, name: str) -> Path | None:
        entry = self.tensors[name]
        whole = entry.rows is None and not entry.normalised and not self.streamed
        return entry.file if whole else None

    def will_need_block(self, block: int) -> None:
        """Have the system read a block's bytes ahead, into its cache and not into our memory."""
        if not hasattr(os, "posix_fadvise") or self.streamed:
            return
        names = (self.block_name(block, name) for name in self.block_tensors(block))
        entries = stored(self.tensors[name] for name in names)
        for file in {t.file for t in entries}:
            begin = min(t.begin for t in entries if t.file == file)
            end = max(t.end for t in entries if t.file == file)
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), begin, end - begin, os.POSIX_FADV_WILLNEED)

    @cached_property
    def streamed(self) -> bool:
        """Whether the folder has stubs in the place of its shards."""
        return shards_of(self.path) is not None

    @property
    def coded(self) -> bool:
        """Whether transformers runs the folder's model by code in it alone, which is not run here."""
        return not self.family.stock or (self.translation is not None and self.translation.coded)

    def model_config(self):
        """transformers' config of the model."""
        if self.translation:
            return made(self.written_config)
        return open_config(self.path, self.family)

    def tokenizer(self):
        """transformers' tokenizer of the folder; InputError where it cannot be had, or is another's."""
        return open_tokenizer(self.path, self.coded, self.vocabulary)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.path, self._files())

    def change(self) -> str | None:
        return change(self.path, self.fingerprint, self.states)

    def _files(self) -> list[Path]:
        return sorted({t.file for t in stored(self.all_entries)})

    # -- opening ----------------------------------------------------------------------------------

    def _open_config(self) -> None:
        """The config as it is written, as transformers has it, and under standard names."""
        hint = "a Hugging Face checkpoint has one"
        self.written_config = read_object(self.path / "config.json", hint)
        original = self.written_config
        check_blocks(self.path, original)
        self.translation = translation_of(original)
        if self.translation:
            self.written_config = self.translation.config(original)
        self.family = family_of(self.written_config)
        self.wrapper = self.translation.wrapper if self.translation else None
        if self.wrapper:
            self.family = self.wrapper.inside(self.family)
        check_task(self.path, self.written_config if self.wrapper else original)
        self.config = self.family.standard(self.written_config)
        check_patterns(self.path, self.config)
        if reason := self.family.unlike(self.config):
            raise InputError(f"{self.path} cannot be cut: {reason}")
        self._check_format()
        check_per_layer(self.config, self.family)
        loaded = load_config(self.path, self.family, self.written_config, bool(self.translation))
        self.config = settings(self.family, self.written_config, loaded.to_dict())

    def _check_format(self) -> None:
        """Quantised weights are not for cutting; `quantization/reading.py` opens them to run them."""
        if self.config.get("quantization_config"):
            raise InputError(
                f"{self.path} holds quantised weights (its config has quantization_config); "
                "give the original, unquantised checkpoint."
            )

    def _find_weights(self) -> None:
        """Make `tensors` those of the model, where they are stored otherwise."""
        held = self.tensors
        if self.translation:
            self.tensors = self.translation.tensors(held, self.config.get("vocab_size"))
        if self.wrapper:
            self.part_from(held)
            check_dtypes(self.tensors, self.dtypes)

    def _leave_out(self) -> None:
        """Heads that predict further tokens are of the uncut model, and transformers runs none."""
        names = foreseeing(self.tensors, self.family)
        for name in names:
            del self.tensors[name]
        if names:
            self.notes.append(
                f"{self.path} holds a head that predicts further tokens ({names[0]} and "
                f"{len(names) - 1} more), which fits the uncut model alone; it is left out."
            )

    def _stack_experts(self) -> None:
        family = self.family
        self.stacks = are_stacked(self.tensors, family)
        count = self.config.get(family.ffn_width_key)
        self.tensors = stacked(self.tensors, family, count, self.label)

    def check_tensors(self) -> EmptyModel:
        try:
            return super().check_tensors()
        except UnfitError as error:
            raise MendableError(str(error), self.path) from error

    def _compare_dtypes(self) -> None:
        """Say where transformers would load the weights in another dtype than they are read in here."""
        said, held = self.model_config().dtype, {t.dtype for t in self.tensors.values()}
        if said is not None and not isinstance(said, torch.dtype):
            raise InputError(f"The config of {self.path} says dtype {said!r:.60}, which is none.")
        if said in held or (said is None and len(held) == 1):
            return
        names = [str(dtype).removeprefix("torch.") for dtype in (self.dtype, said)]
        kept = f"They are read, computed with and written as {names[0]}"
        if said is None:
            self.notes.append(
                f"The weights of {self.path} are of several dtypes, and its config names none. {kept}, "
                "as most of them are; transformers' dtype='auto' takes that of the first tensor."
            )
        else:
            self.notes.append(
                f"The config of {self.path} says {names[1]}, and no weight is stored so. {kept}; "
                f"transformers' dtype='auto' would round them to {names[1]}."
            )

    def _check_count(self) -> None:
        """No block is there beyond those that the config counts."""
        if self.blocks < 1:
            raise InputError(f"The config of {self.path} counts {self.blocks} blocks.")
        prefix, held = self.family.layers + ".", set()
        for name in self.tensors:
            number = name.removeprefix(prefix).partition(".")[0]
            if not name.startswith(prefix) or not NUMBER.fullmatch(number):
                continue
            held.add(int(number))
            if int(number) >= self.blocks:
                raise MendableError(
                    f"{self.path} holds {name}, but its config counts {self.blocks} blocks, the last "
                    f"of which is {self.blocks - 1}; give a folder whose config is of these weights.",
                    self.path,
                )
        check_blocks(self.path, self.config, len(held))

    def _check_units(self) -> None:
        """Every tensor that a cut touches is as wide as the units that it is cut by."""
        for block, units in enumerate(self.block_units):
            for group, slices in self.families[block].groups().items():
                for part in slices:
                    name = self.block_name(block, part.tensor)
                    if name not in self.tensors:
                        continue
                    width = units[group] * part.size(self.channel_sizes)
                    channels = self.tensors[name].shape[part.axis]
                    if channels != width:
                        raise MendableError(
                            f"{name} in {self.path} has {channels} channels, but the config implies "
                            f"{units[group]} units of {part.size(self.channel_sizes)}.",
                            self.path,
                        )
