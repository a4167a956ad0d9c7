"""LoRA adapters (Hu et al., arXiv 2106.09685) by peft on every projection of a cut model.

Weights stay as they are stored, or in float32, so that nothing is lost before the adapters are
merged; adapters are float32.
"""

import warnings
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from compressor.config.recovery import RecoveryConfig
from compressor.model.checkpoint import Checkpoint
from compressor.model.loading import built, load
from compressor.recovery.precision import computed_dtype, held_dtype
from compressor.recovery.sharding import Sharding, Shell, whole

Adapters = dict[str, tuple[torch.Tensor, torch.Tensor]]
NAME = "default"  # peft's name of an adapter that is not named


def target_modules(checkpoint: Checkpoint) -> list[str]:
    """The projections of a block that a cut touches, by their names inside it."""
    return [name.removesuffix(".weight") for name in checkpoint.family.projections()]


def load_adapted(
    folder: Path,
    recovery: RecoveryConfig,
    device: torch.device,
    asked: str,
    seed: int,
    sharding: Sharding | None = None,
) -> nn.Module:
    """The checkpoint in `folder` as a model whose adapters alone ask for gradients.

    An adapter begins as no change. sharding: how this process shares the model out with the others.
    """
    checkpoint = Checkpoint(folder)
    held = held_dtype(checkpoint.dtype, device.type == "cpu", asked)
    if sharding:
        shell = Shell(checkpoint, held, device)
        model = adapted(shell.model, checkpoint, recovery, seed)
        shell.fill(sharding, keep_absent, computed_dtype(device.type == "cpu", asked))
        return model
    base = built(checkpoint, held) if checkpoint.wrapper else load(folder, held)[0]
    model = adapted(base, checkpoint, recovery, seed)
    keep_absent(model)
    return model.to(device)


def adapted(base: nn.Module, checkpoint: Checkpoint, recovery: RecoveryConfig, seed: int):
    """peft's model of a model, with an adapter on every projection."""
    config = LoraConfig(
        r=recovery.rank,
        lora_alpha=recovery.alpha,  # type: ignore[arg-type]  # peft divides by the rank anyway
        lora_dropout=recovery.dropout,
        target_modules=target_modules(checkpoint),
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings():  # of names that transformers deprecates and peft still asks for
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(base.requires_grad_(False), config)


@torch.no_grad()
def keep_absent(model: nn.Module) -> None:
    """Where a weight's column is zero (a padded unit) the adapter's column becomes zero too; no input
    reaches it, so it stays zero and the unit stays absent.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.lora_A[NAME].weight[:, (module.weight == 0).all(0)] = 0


def base_of(model: nn.Module):
    """transformers' model of one that is trained, which may be inside of peft's."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The adapted projections by the names their weights have in a checkpoint."""
    return {n: m for n, m in base_of(model).named_modules() if isinstance(m, LoraLayer)}


def adapters(model: nn.Module) -> Adapters:
    """A [rank, in] and B [out, rank] of every adapted projection, in float32 on the CPU. Every process
    that has a part of them has to ask.
    """

    def gathered(factor: nn.ModuleDict) -> torch.Tensor:
        return whole(cast(torch.Tensor, factor[NAME].weight)).float().cpu()

    return {n: (gathered(m.lora_A), gathered(m.lora_B)) for n, m in layers(model).items()}
