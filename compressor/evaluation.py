"""Perplexity of a streamed model."""

import math

import torch

from compressor.blocks import BlockStream
from compressor.calibration import TokenSet

LOGITS_ROWS = 1024  # float32 logits of so many tokens at a time: 128 MB at a vocabulary of 32,000


def perplexity(stream: BlockStream, tokens: TokenSet) -> dict:
    """exp(total nll / predicted tokens), in nats, over every token but each sequence's first."""
    batches = tokens.batches()
    nll, count = 0.0, 0
    for batch, hidden_logits in zip(batches, stream.logits([b.ids for b in batches]), strict=True):
        targets = batch.ids[:, 1:].to(hidden_logits.device)
        real = batch.mask[:, 1:].to(hidden_logits.device)
        for row, target, mask in zip(hidden_logits[:, :-1], targets, real, strict=True):
            for begin in range(0, len(target), LOGITS_ROWS):
                part = slice(begin, begin + LOGITS_ROWS)
                losses = torch.nn.functional.cross_entropy(
                    row[part].float(), target[part], reduction="none"
                )
                nll += losses[mask[part]].double().sum().item()
        count += int(real.sum())
    return {
        "perplexity": math.exp(nll / count),
        "nll": nll / count,
        "tokens": count,
        "documents": len(tokens.sequences),
        "protocol": tokens.protocol,
    }
