"""A model in memory as a source: the module of a transformers model, whose tensors are read in place."""

import hashlib
import json
from collections.abc import Iterable
from copy import deepcopy
from functools import cached_property
from types import SimpleNamespace
from typing import cast

import torch
from torch import nn

from compressor.errors import InputError
from compressor.model.families import family_of
from compressor.model.families.wrappers import WRAPPERS
from compressor.model.modules import head_name
from compressor.model.per_layer import check as check_per_layer
from compressor.model.source import Source
from compressor.model.tensors import turned

EDGE = 512  # values at either end of a tensor that its fingerprint sees


class LoadedModel(Source):
    """`module` is a causal language model of transformers, of a family that is known; it stays as it is.

    InputError for what would be read otherwise than it computes: a class of the user's own, hooks, a
    replaced forward, weights that are not there (meta) or not plain (quantised, adapters).
    """

    def __init__(self, module: nn.Module):
        self.module, self.label = module, f"the {type(module).__name__} in memory"
        self.notes: list[str] = []
        config = getattr(module, "config", None)
        if not hasattr(config, "to_diff_dict"):
            raise InputError(
                f"{self.label} has no config of transformers, so its family is not known; give a model "
                "that AutoModelForCausalLM makes."
            )
        if config.model_type in WRAPPERS:
            raise InputError(
                f"{self.label} is of texts and images, and such models are read from their folders; "
                "save it (save_pretrained), and give that folder."
            )
        self.family = family_of(config.to_dict())
        if module.get_output_embeddings() is None:
            raise InputError(f"{self.label} has no head; give a {self.family.architecture}.")
        self.written_config = json.loads(config.to_json_string(use_diff=True))
        self.written_config["model_type"] = config.model_type
        for standard, spelling in self.family.spellings.items():
            if spelling in self.written_config:  # its class may have a default by the other name
                self.written_config.pop(standard, None)
        self.config = self.family.standard(
            {key: value for key, value in config.to_dict().items() if value is not None}
        )
        if reason := self.family.unlike(self.config):
            raise InputError(f"{self.label} cannot be cut: {reason}")
        check_per_layer(self.config, self.family)
        check_plain(module, self.label)
        self.parameters_by_name = self._find_tensors()
        entries = {name: entry_of(tensor) for name, tensor in self.parameters_by_name.items()}
        self.tensors = turned(entries, self.family)
        self.settle_head()
        self._check_class()

    def _find_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by the names that files have."""
        head = head_name(self.module)
        return {
            self.family.head if name == head else name: tensor
            for name, tensor in self.module.state_dict(keep_vars=True).items()
            if not name.endswith(self.family.not_read)
        }

    def _check_class(self) -> None:
        """The module is what its config makes, so that what is computed here is what it computes."""
        empty = self.check_tensors()
        if type(self.module).__name__ not in (empty.name, self.family.architecture):
            raise InputError(
                f"{self.label} is not of the class that its config makes, {empty.name}, and would be "
                "computed as one; give that."
            )
        with torch.device("meta"):
            twin = type(self.module)(self.model_config())
        for name, part in twin.named_modules():
            there = self.module.get_submodule(name)
            if plain(there) != plain(part):
                raise InputError(
                    f"{name or 'the model'} of {self.label} has another class, or another number in it, "
                    "than its config makes, and would be computed as that; give the model as it was."
                )

    @cached_property
    def dtype(self) -> torch.dtype:
        return cast(torch.dtype, self.module.dtype)

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        tensors = {name: self.parameters_by_name[name].detach().cpu() for name in names}
        return {n: t.t() if self.tensors[n].transposed else t for n, t in tensors.items()}

    def model_config(self):
        return deepcopy(self.module.config)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the config, and of every tensor's shape, dtype and values at either end."""
        digest = hashlib.sha256(json.dumps(self.written_config, sort_keys=True).encode())
        for name, tensor in sorted(self.parameters_by_name.items()):
            values = tensor.detach().flatten()
            ends = torch.cat([values[:EDGE], values[-EDGE:]]).cpu().contiguous()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(ends.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def entry_of(tensor: torch.Tensor) -> SimpleNamespace:
    """What a header would say of it."""
    about = {"shape": list(tensor.shape), "dtype": tensor.dtype, "numel": tensor.numel()}
    return SimpleNamespace(**about, begin=0, end=tensor.nbytes, parts=(), transposed=False)


def plain(part: nn.Module) -> tuple[type, dict]:
    """What a module computes by, besides its tensors: its class and the numbers in it."""
    numbers = {name: value for name, value in vars(part).items() if type(value) in (int, float)}
    return type(part), numbers


def check_plain(module: nn.Module, label: str) -> None:
    """Refuse what makes a module compute something else than its class and its tensors say."""
    for name, part in module.named_modules():
        where = f"{name or 'the model'} of {label}"
        if part._forward_hooks or part._forward_pre_hooks:
            raise InputError(
                f"{where} has forward hooks, and what they change would not be seen; remove them."
            )
        if "forward" in vars(part):
            raise InputError(
                f"{where} has a forward of its own in place of its class's (accelerate puts one there "
                "to offload weights), which would not be run; load the model without."
            )
    for name, tensor in module.state_dict().items():
        if tensor.is_meta:
            raise InputError(f"{name} of {label} is on the meta device, without values; load it.")
        if not tensor.is_floating_point():
            raise InputError(
                f"{name} of {label} is of {tensor.dtype}; quantised weights cannot be cut: give the "
                "original model."
            )
