"""A model whose weights themselves are trained, in float32, whatever they are stored in."""

from pathlib import Path

import torch
from torch import nn

from compressor.model.checkpoint import Checkpoint
from compressor.model.loading import built, load
from compressor.model.modules import head_name
from compressor.recovery.merge import write_changed
from compressor.recovery.sharding import Sharding, Shell, whole


def load_full(
    folder: Path, device: torch.device, sharding: Sharding | None = None, computed=torch.float32
) -> nn.Module:
    """The checkpoint in `folder` as a model whose weights all ask for gradients.

    sharding: how this process shares it out with the others, with products in the dtype `computed`.
    A unit whose weights are zeros (a padded one) gets no gradient, and stays absent.
    """
    checkpoint = Checkpoint(folder)
    if sharding:
        shell = Shell(checkpoint, torch.float32, device, trained=True)
        return shell.fill(sharding, computed=computed)
    wrapped = checkpoint.wrapper
    model = built(checkpoint, torch.float32) if wrapped else load(folder, torch.float32)[0]
    for parameter in model.parameters():  # not in pages mapped from the file
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return model.requires_grad_(True).to(device)


def by_stored_name(model: nn.Module, checkpoint: Checkpoint) -> dict[str, nn.Parameter]:
    """The weights of a model by their names in a checkpoint; a tied head is the embedding."""
    renamed = {head_name(model): checkpoint.family.head}
    return {renamed.get(name, name): p for name, p in model.named_parameters()}


def write_full(model: nn.Module, folder: Path, out: Path | None) -> None:
    """The checkpoint in `folder` with the model's weights, rounded once to what was stored, as the new
    folder `out`. Every process that has a part of them calls this; without `out` it writes nothing.
    """
    checkpoint = Checkpoint(folder)
    weights = by_stored_name(model, checkpoint)

    def made(name: str) -> torch.Tensor:
        if name not in weights:  # a buffer
            return checkpoint.read([name])[name]
        return whole(weights[name]).to(checkpoint.tensors[name].dtype).cpu()

    if out is not None:
        write_changed(checkpoint, out, made)
        return
    for name in checkpoint.tensors:
        made(name)
