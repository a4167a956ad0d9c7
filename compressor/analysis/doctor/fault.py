"""What a fault is, and the folder that is looked at and mended: all in memory, nothing is written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch

from compressor.errors import InputError
from compressor.model.families import FAMILIES, Family


@dataclass(frozen=True)
class Asked:
    """What the user says where a folder can mean two things; None and False say nothing.

    head_dim: channels of a head. merged: an adapter beside the weights is in them already. tied: a head
    that is not there is the embedding. rope: the form of the rotary settings that is right, of two that
    differ. layout: of blocks of their own widths.
    """

    head_dim: int | None = None
    merged: bool = False
    tied: bool = False
    rope: str | None = None
    layout: str | None = None


@dataclass
class Patient:
    """A folder as its mends leave it.

    `config` is what config.json is to say. `files` are those of the weights, where a mend has chosen
    them. `tensors` maps a name to a header entry (`model/tensors.py`); one with a `tensor` has its
    values in memory or mapped. `rotated`: channels of a head that a stored rotation turns.
    """

    path: Path
    config: dict
    asked: Asked = Asked()
    files: list[str] | None = None
    tensors: dict[str, SimpleNamespace] = field(default_factory=dict)
    original: dict = field(default_factory=dict)  # config.json as it was
    coded: bool = False  # runs by its folder's code alone, which is not run
    rotated: int | None = None
    notes: list[str] = field(default_factory=list)
    _family: Family | None = None

    @property
    def family(self) -> Family:
        assert self._family is not None, "asked for before the weights were opened"
        return self._family

    def become(self, model_type: str) -> None:
        """Have the tensors be those of this model type."""
        self._family = FAMILIES[model_type].of(self.config)

    def numbers(self) -> list[int]:
        """The numbers of the blocks that have tensors, in order."""
        prefix = self.family.layers + "."
        starts = (name.removeprefix(prefix) for name in self.tensors if name.startswith(prefix))
        return sorted({int(n) for rest in starts if (n := rest.partition(".")[0]).isdecimal()})

    def block(self, number: int) -> dict[str, SimpleNamespace]:
        """Entries of a block by their names inside it."""
        prefix = f"{self.family.layers}.{number}."
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    seen: what is wrong, as a sentence; None where it is not. mend: changes the patient and says what was
    done; InputError with the reason where that is not possible, or not without a guess.
    """

    name: str
    seen: Callable[[Patient], str | None]
    mend: Callable[[Patient], str]


@dataclass(frozen=True)
class Found:
    """A fault of a folder, as sentences: what was `seen`, and what was `done` about it."""

    fault: str
    seen: str
    done: str


def treat(patient: Patient, faults: tuple[Fault, ...]) -> list[Found]:
    """Mend what is there of these faults, in their order; InputError where one cannot be mended."""
    found = []
    for fault in faults:
        if seen := fault.seen(patient):
            try:
                done = fault.mend(patient)
            except InputError as error:
                raise InputError(f"{patient.path} cannot be mended. {seen} {error}") from error
            found.append(Found(fault.name, seen, done))
    return found


def entry_of(tensor: torch.Tensor, file: Path | None = None) -> SimpleNamespace:
    """The entry of a tensor that is in no safetensors file, but perhaps in another."""
    return SimpleNamespace(
        file=file,
        key=None,
        tensor=tensor,
        shape=list(tensor.shape),
        dtype=tensor.dtype,
        numel=tensor.numel(),
        begin=0,
        end=tensor.nbytes,
        rows=None,
        parts=(),
        normalised=False,
        transposed=False,
    )


class Held:
    """A tensor as `read_tensor` asks an open safetensors file for it."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def get_tensor(self, key) -> torch.Tensor:
        return self.tensor

    def get_slice(self, key) -> torch.Tensor:
        return self.tensor
