"""Modules whose parameters and forward are lent for a while."""

from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from types import MethodType

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from compressor.errors import InputError


@contextmanager
def loaded(module: nn.Module, tensors: dict[str, torch.Tensor], strict: bool = True):
    """`module` with these tensors as its parameters; the former ones return on leaving."""
    former = {n: p for n, p in module.state_dict(keep_vars=True).items() if n in tensors}
    try:
        missing, unknown = module.load_state_dict(tensors, assign=True, strict=False)
        if strict and (missing or unknown):
            raise InputError(
                f"The checkpoint's tensors do not fit {type(module).__name__}: "
                f"missing {sorted(missing)}, unknown {sorted(unknown)}."
            )
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        yield module
    finally:
        module.load_state_dict(former, assign=True, strict=False)


def make_linear(model: nn.Module) -> nn.Module:
    """The model with `Linear` modules in the place of GPT-2's, whose weights are [in, out].

    The weights are the same memory, and so the numbers computed are the same, too.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(module.nx, module.nf, device="meta")
            linear.weight, linear.bias = nn.Parameter(module.weight.data.t()), module.bias
            model.set_submodule(name, linear)
    return model


def head_name(model: nn.Module) -> str:
    """What a class calls the head's weight; files of GPT-NeoX call it otherwise."""
    head = model.get_output_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is head)


def assign(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Make these tensors, of whatever shape, the parameters of `module`, or buffers that it reads."""
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        read = leaf in owner._buffers
        setattr(owner, leaf, tensor if read else nn.Parameter(tensor, requires_grad=False))


@contextmanager
def replaced_forward(layers: Iterable[nn.Module], forward):
    """Every one of these modules calls `forward(module, ...)` instead of its own forward."""
    # compressed-tensors gives its modules a forward of their own in place of their class's.
    former = [(layer, vars(layer).get("forward")) for layer in layers]
    for layer in layers:
        layer.forward = MethodType(forward, layer)
    try:
        yield
    finally:
        for layer, previous in former:
            del layer.forward
            if previous is not None:
                layer.forward = previous


def move_buffers(model: nn.Module, device: torch.device) -> None:
    """Buffers (rotary frequencies) are computed, not read: they alone live on the device. Those that
    files hold (a router's bias) are read like parameters.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name in module._non_persistent_buffers_set:
                module.register_buffer(name, buffer.to(device), persistent=False)
