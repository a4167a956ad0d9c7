"""A model shared out among processes (FSDP2): each holds its rows of every weight, gradient and moment.

What lies outside the blocks is gathered for a pass and its gradient, a block while it runs. Weights are
read block by block, so no process ever holds the whole. Settings are those of `accelerate launch`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import MethodType
from typing import cast

import torch
from accelerate import init_empty_weights
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.modules import head_name, make_linear, move_buffers
from compressor.model.per_layer import model_of
from compressor.recovery.losses import STATES

# What accelerate's launcher can ask for besides, and what to do instead.
NOT_DONE = {
    "FSDP_OFFLOAD_PARAMS": "start more processes",
    "FSDP_ACTIVATION_CHECKPOINTING": "raise recover_accumulate",
    "FSDP_IGNORED_MODULES": "start more processes",
}


@dataclass(frozen=True)
class Sharding:
    """reshard: whether a block is given up after its forward, and gathered again for its gradient."""

    reshard: bool = True


def asked_for() -> Sharding | None:
    """What accelerate's launcher was told (`accelerate launch --use_fsdp --fsdp_version 2`), if it was.

    `InputError` for what of it is not done here.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return None
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise InputError(
            f"A recovery is sharded by FSDP2, and FSDP_VERSION is {version}; give accelerate launch "
            "--fsdp_version 2."
        )
    for name, instead in NOT_DONE.items():
        if (value := os.environ.get(name, "")).lower() not in ("", "0", "false", "no"):
            raise InputError(
                f"A sharded recovery has no --{name.lower()}, which is {value}; leave it out, and "
                f"{instead} where memory is short."
            )
    try:
        settings = FullyShardedDataParallelPlugin()
    except (ValueError, KeyError, ImportError, RuntimeError) as error:
        raise InputError(f"accelerate refuses what its launcher says of FSDP: {error}") from error
    return Sharding(bool(settings.reshard_after_forward))


def own(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds, in place; all of one that is not sharded."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor. Every process has to ask for it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def shared_like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """`value`, which every process has, on the device of `parameter` and sharded as it is."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value, mesh, placements, src_data_rank=None)


def give_up(model: nn.Module) -> bool:
    """Let go of what was gathered; whether the model is sharded at all."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in parts:
        module.reshard()
    return bool(parts)


class Shell:
    """A checkpoint's model without its weights, which are read into it and sharded block by block.

    `model` has parameters of the right shapes that take no memory, until `fill` has run.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        trained: bool = False,
    ):
        self.checkpoint, self.dtype, self.device = checkpoint, dtype, device
        self.trained = trained
        family = checkpoint.family
        with init_empty_weights(include_buffers=False), torch.random.fork_rng(devices=[]):
            self.model = make_linear(model_of(checkpoint.model_config(), family, dtype)).eval()
        move_buffers(self.model, device)
        for module in self.model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                nothing = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                setattr(module, name, nn.Parameter(nothing, requires_grad=False))
        renamed = {family.head: head_name(self.model)}
        self.places = {name: self.place(renamed.get(name, name)) for name in checkpoint.tensors}
        self.head = self.place(head_name(self.model))

    def place(self, name: str) -> tuple[nn.Module, str]:
        """The module that has a tensor, and what it calls it."""
        path, _, leaf = name.rpartition(".")
        return self.model.get_submodule(path), leaf

    def read(self, names: list[str]) -> None:
        """Put these tensors of the files in their places."""
        of = self.checkpoint.family.dtype_of
        for name, tensor in self.checkpoint.read(names).items():
            module, leaf = self.places[name]
            value = tensor.to(device=self.device, dtype=of(name, self.dtype)).contiguous()
            if leaf not in module._buffers:
                value = nn.Parameter(value, requires_grad=self.trained)
            setattr(module, leaf, value)

    def fill(
        self,
        sharding: Sharding,
        ready: Callable[[nn.Module], None] = lambda module: None,
        computed: torch.dtype = torch.float32,
    ) -> nn.Module:
        """The model, read and sharded. ready(module) is called with a block that was read; computed: the
        dtype that weights held in float32 are gathered in.
        """
        checkpoint = self.checkpoint
        mesh = init_device_mesh(self.device.type, (torch.distributed.get_world_size(),))
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)
        if computed != self.dtype == torch.float32:
            # As autocast rounds them; but what it rounds stays until the gradient is there.
            policy = replace(policy, param_dtype=computed, reduce_dtype=torch.float32)
        shard = partial(fully_shard, mesh=mesh, mp_policy=policy)
        layers = cast(nn.ModuleList, self.model.get_submodule(checkpoint.family.layers))
        for index, layer in enumerate(layers):
            self.read([checkpoint.block_name(index, n) for n in checkpoint.block_tensors(index)])
            ready(layer)
            shard(layer, reshard_after_forward=sharding.reshard)
        self.read(checkpoint.outer_tensors())
        if checkpoint.tied:
            module, leaf = self.head
            embedding, name = self.places[checkpoint.family.embedding]
            setattr(module, leaf, getattr(embedding, name))
        # The head is called by itself, between the forward pass and the gradient.
        shard(self.model, reshard_after_forward=False)
        for module in self.model.modules():
            if isinstance(module, FSDPModule):  # a loss is a sum over ranks
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        setattr(self.model, STATES, MethodType(_states, self.model))
        register_fsdp_forward_method(self.model, STATES)
        return self.model


def _states(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    # What a hook is put on must be no view.
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state.clone()
