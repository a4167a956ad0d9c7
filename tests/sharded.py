"""What a rank does in test_sharding.py: a training of a sharded model, all of it but the command.

    sharded.py MODEL OUT METHOD

Into the folder OUT come the result, the logits that it must compute, and how many numbers every rank
held (JSON).
"""

import json
import sys
from pathlib import Path

import torch

from compressor.config.recovery import RecoveryConfig
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.recovery import stage, training
from compressor.recovery.data import Example, RecoveryData
from compressor.recovery.saved import MOMENTS
from compressor.recovery.sharding import Sharding, own
from compressor.recovery.training import Training

EXPECTED = "state.expected.safetensors"


def settings(method: str) -> RecoveryConfig:
    """Without a dropout, whose draws differ between ranks."""
    of_adapters = {} if method.startswith("full") else {"dropout": 0.0, "rank": 3}
    return RecoveryConfig(
        method, 6, batch=4, accumulate=2, learning_rate=1e-2, weight_decay=0.1, distill_weight=0.5,
        teacher_top=8, save_every=6, clip_norm=0.5, **of_adapters,
    )  # fmt: skip


def sequences() -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 120, (6 + 3 * (i % 4),), generator=generator) for i in range(12)]
    return [Example(row, row) for row in ids]


def recovered(model: Path, out: Path, method: str, sharding: Sharding | None) -> None:
    examples = sequences()
    data = RecoveryData(examples[2:], examples[:2])
    asked = Training(settings(method), data, 0, "auto", sharding)
    stage.recover(asked, model, out / "result", out / "state", BlockStream(Checkpoint(model)))


def sizes(tensors) -> list[int]:
    """How many numbers of these tensors this rank holds, and how many there are."""
    tensors = list(tensors)
    return [sum(own(t).numel() for t in tensors), sum(t.numel() for t in tensors)]


def counted(held: dict) -> None:
    """Have a training tell what it holds of the weights, of gradients and of moments."""
    train, save, clip = stage.train, training.save, training.clip

    def training_of(model, *more):
        held["weights"] = sizes(model.parameters())
        return train(model, *more)

    def saving(path, parameters, optimizer, *more):
        moments = [state[name] for state in optimizer.state.values() for name in MOMENTS]
        held["moments"] = sizes(moments)
        save(path, parameters, optimizer, *more)

    def clipping(gradients, *more):
        held["gradients"] = sizes(gradients)
        return clip(gradients, *more)

    stage.train, training.save, training.clip = training_of, saving, clipping


if __name__ == "__main__":
    model, out, method = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    held: dict[str, list[int]] = {}
    counted(held)
    recovered(model, out, method, Sharding())
    rank = torch.distributed.get_rank()
    (out / f"held{rank}.json").write_text(json.dumps(held))
