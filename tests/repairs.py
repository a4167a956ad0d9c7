"""Repairs of small models in the tests."""

import torch

from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.planning.plan import Plan
from compressor.repairing.streaming import Repair
from compressor.text.tokens import TokenSet

PLAN = {"attention": [0, 2, 3], "ffn": [*range(0, 40, 2), 41]}


def texts(count=20) -> list[torch.Tensor]:
    """Sequences of different lengths, so that batches are padded, of a few tokens that come again."""
    torch.manual_seed(5)
    return [torch.randint(3, 15, (30 + i % 7,)) for i in range(count)]


def plan_of(checkpoint: Checkpoint, block=PLAN) -> Plan:
    family = checkpoint.family
    if family.heads_fixed or family.couples_heads(checkpoint.config):
        block = block | {"attention": [*range(checkpoint.units["attention"])]}
    return Plan([block] * checkpoint.blocks)


def repaired(folder, kind="ridge", sequences=None, plan=None, **options):
    """The repair that has been run, and the tensors it changed in every block."""
    checkpoint = Checkpoint(folder)
    stream = BlockStream(checkpoint, **options)
    plan = plan or plan_of(checkpoint)
    repair = Repair(stream, plan, TokenSet(sequences or texts()), kind)
    return repair, list(repair.blocks())
