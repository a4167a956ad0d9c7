"""Reading a checkpoint folder: config, tokenizer and lazily mapped safetensors.

Everything that can be refused is refused when the folder is opened, from the headers alone: no
tensor is read, nothing is executed, no pickle is touched.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import torch

from compressor.errors import InputError
from compressor.families import family_of
from compressor.families.rotary_baichuan import is_rotary, llama_config, llama_tensors
from compressor.geometry import Geometry
from compressor.per_layer import check as check_per_layer
from compressor.per_layer import open_config
from compressor.tensors import DTYPES, INDEX, SINGLE, completed, read_header, read_tensors, turned

FINGERPRINT_BYTES = 1 << 20
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
    "tokenizer_config.json",
)


class Checkpoint(Geometry):
    """A Hugging Face folder, opened read-only.

    `config` has settings under their standard names; `written_config` is the file's. Where no class of
    transformers has the model's names, but one computes the same (`translated`), all is as that one has
    it. `tensors` maps a name to its header entry: `shape`, `dtype`, `key`, its name in `file`, and
    `begin`, `end`, in bytes from the start of it; `rows` if it is a part of what is stored, `normalised`
    if each row is divided by its norm, `transposed` if files hold it as [in, out]. Shards are opened
    anew on every read: a kept handle would keep every page ever touched in resident memory.
    """

    dtypes = DTYPES
    group: int | None = None  # input channels that share a scale, where weights are packed

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_dir():
            raise InputError(f"There is no folder {str(self.path)!r}; give a checkpoint folder.")
        self.written_config = self._read_json("config.json", "a Hugging Face checkpoint has one")
        self.translated = is_rotary(self.written_config)
        if self.translated:
            self.written_config = llama_config(self.written_config)
        self.family = family_of(self.written_config.get("model_type"))
        self.config = self.family.standard(self.written_config)
        if reason := self.family.unlike(self.config):
            raise InputError(f"{self.path} cannot be cut: {reason}")
        self._check_format()
        check_per_layer(self.config, self.family)
        self.tensors: dict[str, SimpleNamespace] = {}
        for file in self._shards():
            self.tensors.update(read_header(self.path / file, self.dtypes, self.family.not_read))
        self._check_index()
        self._find_weights()
        self._complete_names()
        self._leave_out_duplicates()
        self._check_count()
        self._check_shapes()

    # -- what the files hold ----------------------------------------------------------------------

    @property
    def tied(self) -> bool:
        return self.family.head not in self.tensors

    @property
    def vocabulary(self) -> int:
        return self.tensors[self.family.embedding].shape[0]

    @property
    def parameters(self) -> int:
        return sum(t.numel for t in self.tensors.values())

    @property
    def bytes(self) -> int:
        return sum(t.end - t.begin for t in self.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the blocks' weights."""
        return self.tensors[self.block_name(0, self.family.output("ffn"))].dtype

    def block_name(self, block: int, name: str) -> str:
        return f"{self.family.layers}.{block}.{name}"

    def block_tensors(self, block: int) -> list[str]:
        """Names inside one block that the files hold, e.g. `mlp.up_proj.weight`."""
        prefix = self.block_name(block, "")
        return [name.removeprefix(prefix) for name in self.tensors if name.startswith(prefix)]

    def outer_tensors(self) -> list[str]:
        """Names outside the blocks: embedding, last norm, head."""
        return [name for name in self.tensors if not name.startswith(self.family.layers + ".")]

    # -- reading ----------------------------------------------------------------------------------

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The named tensors, mapped from the files on the CPU; not to be written to."""
        return read_tensors(self.tensors, names)

    def read_block(self, block: int) -> dict[str, torch.Tensor]:
        """All tensors of one block, by their name inside it."""
        names = self.block_tensors(block)
        tensors = self.read(self.block_name(block, name) for name in names)
        return {name: tensors[self.block_name(block, name)] for name in names}

    def as_stored(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor of this whole name as files hold it: what `read` gives, turned back."""
        return tensor.t() if self.tensors[name].transposed else tensor

    def will_need_block(self, block: int) -> None:
        """Have the system read a block's bytes ahead, into its cache and not into our memory."""
        if not hasattr(os, "posix_fadvise"):
            return
        entries = [self.tensors[self.block_name(block, name)] for name in self.block_tensors(block)]
        for file in {t.file for t in entries}:
            begin = min(t.begin for t in entries if t.file == file)
            end = max(t.end for t in entries if t.file == file)
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), begin, end - begin, os.POSIX_FADV_WILLNEED)

    @property
    def coded(self) -> bool:
        """Whether transformers runs the folder's model by code in it alone, which is not run here."""
        return self.translated or not self.family.stock

    def model_config(self):
        """transformers' config of the model."""
        if self.translated:
            from transformers import AutoConfig

            return AutoConfig.for_model(**self.written_config)
        return open_config(self.path, self.family)

    def tokenizer(self):
        if self.coded and not (self.path / "tokenizer.json").exists():
            raise InputError(
                f"The tokenizer in {self.path} is code of its own, which is not run; save it as "
                "tokenizer.json (transformers' PreTrainedTokenizerFast) and put that beside the weights."
            )
        if not any((self.path / name).exists() for name in TOKENIZERS):
            raise InputError(
                f"{self.path} has no tokenizer (none of {', '.join(TOKENIZERS)}); put that of the "
                "original model beside the weights."
            )
        try:
            return read_tokenizer(self.path, self.coded)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"The tokenizer in {self.path} does not load: {error}") from error

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the config, all headers and the first and last MiB of every file's data."""
        digest = hashlib.sha256((self.path / "config.json").read_bytes())
        for file in sorted({t.file for t in self.tensors.values()}):
            with file.open("rb") as stream:
                begin = 8 + int.from_bytes(stream.read(8), "little")
                stream.seek(0)
                digest.update(stream.read(begin + FINGERPRINT_BYTES))
                stream.seek(max(begin, file.stat().st_size - FINGERPRINT_BYTES))
                digest.update(stream.read())
        return digest.hexdigest()

    # -- checks -----------------------------------------------------------------------------------

    def _check_format(self) -> None:
        """Quantised weights are not for cutting; `quantization.reading` opens them to run them."""
        if self.config.get("quantization_config"):
            raise InputError(
                f"{self.path} holds quantised weights (its config has quantization_config); "
                "give the original, unquantised checkpoint."
            )

    def _find_weights(self) -> None:
        """Make `tensors` those of the model, where they are stored otherwise."""
        if self.translated:
            self.tensors = llama_tensors(self.tensors, self.config.get("vocab_size"))

    def _read_json(self, name: str, hint: str) -> dict:
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{self.path} has no {name}; {hint}.") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path / name} is not valid JSON: {error}.") from error
        if not isinstance(found, dict):
            raise InputError(f"{self.path / name} is no JSON object but {str(found)[:40]}; {hint}.")
        return found

    def _shards(self) -> list[str]:
        """File names of the shards; a name that leaves the folder is refused."""
        if not (self.path / INDEX).exists():
            if (self.path / SINGLE).exists():
                return [SINGLE]
            pickled = [*self.path.glob("*.bin"), *self.path.glob("*.pt"), *self.path.glob("*.pth")]
            if pickled:
                raise InputError(
                    f"{self.path} holds pickled weights only ({pickled[0].name}); pickles can run "
                    "code and are not opened. Convert to safetensors first."
                )
            raise InputError(f"{self.path} has neither {SINGLE} nor {INDEX}.")
        index = self._read_json(INDEX, "")
        if not isinstance(index.get("weight_map"), dict):
            raise InputError(f"{self.path / INDEX} has no weight_map.")
        files = sorted(set(index["weight_map"].values()))
        for file in files:
            if Path(file).name != file:
                raise InputError(f"{self.path / INDEX} names {file!r}, outside the folder.")
        return files

    def _check_index(self) -> None:
        if not (self.path / INDEX).exists():
            return
        for name, file in self._read_json(INDEX, "")["weight_map"].items():
            if name.endswith(self.family.not_read):
                continue
            if name not in self.tensors or self.tensors[name].file.name != file:
                raise InputError(f"{self.path / INDEX} places {name} in {file}, which lacks it.")

    def _complete_names(self) -> None:
        self.tensors = turned(completed(self.tensors, self.family), self.family)

    def _leave_out_duplicates(self) -> None:
        """Forget a second copy of a tied head."""
        head, embedding = self.family.head, self.family.embedding
        if self.config.get("tie_word_embeddings") and {head, embedding} <= self.tensors.keys():
            pair = self.read([head, embedding])
            if torch.equal(pair[head], pair[embedding]):
                del self.tensors[head]

    def _check_count(self) -> None:
        """No block is there beyond those that the config counts."""
        prefix = self.family.layers + "."
        for name in self.tensors:
            number = name.removeprefix(prefix).partition(".")[0]
            if name.startswith(prefix) and number.isdecimal() and int(number) >= self.blocks:
                raise InputError(
                    f"{self.path} holds {name}, but its config counts {self.blocks} blocks, the last "
                    f"of which is {self.blocks - 1}; give a folder whose config is of these weights."
                )

    def _check_shapes(self) -> None:
        """Every tensor a cut touches is there with the shape its config implies."""
        for block, units in enumerate(self.block_units):
            for group, slices in self.family.groups().items():
                for part in slices:
                    name = self.block_name(block, part.tensor)
                    if name not in self.tensors:
                        if part.optional:
                            continue
                        raise InputError(f"{self.path} lacks the tensor {name}.")
                    width = units[group] * part.size(self.channel_sizes)
                    shape = (
                        [width, self.hidden_size] if part.axis == 0 else [self.hidden_size, width]
                    )
                    shape = shape[:1] if part.tensor.endswith("bias") else shape
                    if self.tensors[name].shape != shape:
                        raise InputError(
                            f"{name} in {self.path} has the shape {self.tensors[name].shape}, "
                            f"but the config implies {shape}."
                        )
        if self.family.embedding not in self.tensors:
            raise InputError(f"{self.path} lacks the tensor {self.family.embedding}.")
        if self.tied and not self.config.get("tie_word_embeddings"):
            raise InputError(f"{self.path} lacks the tensor {self.family.head}.")


def read_tokenizer(path: Path, coded: bool):
    """A folder's tokenizer; of a `coded` model, whose config transformers would run code to read, as
    tokenizer.json has it.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    return (PreTrainedTokenizerFast if coded else AutoTokenizer).from_pretrained(path)
