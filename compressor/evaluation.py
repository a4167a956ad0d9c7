"""Perplexity of a streamed model."""

import math

import torch

from compressor.blocks import BlockStream
from compressor.calibration import TokenSet

LOGITS_ROWS = 1024  # tokens a batch: their logits are 128 MB in float32 at a vocabulary of 32,000


def perplexity(stream: BlockStream, tokens: TokenSet) -> dict:
    """exp(total nll / predicted tokens), in nats, over every token but each sequence's first."""
    batches = tokens.batches(LOGITS_ROWS)
    nll, count = 0.0, 0
    for batch, logits in zip(batches, stream.logits([b.ids for b in batches]), strict=True):
        targets = batch.ids[:, 1:].to(logits.device)
        real = batch.mask[:, 1:].to(logits.device)
        for row, target, mask in zip(logits[:, :-1], targets, real, strict=True):
            losses = torch.nn.functional.cross_entropy(row.float(), target, reduction="none")
            nll += losses[mask].double().sum().item()
        count += int(real.sum())
    return {
        "perplexity": math.exp(nll / count),
        "nll": nll / count,
        "tokens": count,
        "documents": len(tokens.sequences),
        "protocol": tokens.protocol,
    }
