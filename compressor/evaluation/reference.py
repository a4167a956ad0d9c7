"""How well a streamed model predicts a text, and how far its predictions are from its source's."""

from collections.abc import Callable, Iterator

import torch

from compressor.model.activations import Activations
from compressor.model.stream import BlockStream, logits_rows
from compressor.repairing.losses import divergence
from compressor.text.tokens import Batch, TokenSet

BATCH = 1024  # tokens that pass through the blocks at once
Progress = Callable[[int, int], None]


def perplexity(
    stream: BlockStream, tokens: TokenSet, progress: Progress = lambda done, total: None
) -> dict:
    """exp(total nll / predicted tokens), in nats, over every token but each sequence's first."""
    return Reference(stream, tokens).measured(progress)


class Reference:
    """A source and a text, by which results are measured. The source's blocks run once, or again when
    another number of tokens (`batch_tokens`) is to pass through them at once.
    """

    def __init__(self, source: BlockStream, tokens: TokenSet):
        self.source, self.tokens = source, tokens
        self._batch_tokens, self.batches = BATCH, tokens.batches(BATCH)
        self.states: Activations | None = None

    @property
    def batch_tokens(self) -> int:
        return self._batch_tokens

    @batch_tokens.setter
    def batch_tokens(self, count: int) -> None:
        if count == self._batch_tokens:
            return
        self._batch_tokens, self.batches = count, self.tokens.batches(count)
        if self.states is not None:
            self.states.discard()
            self.states = None

    @property
    def device(self) -> torch.device:
        return self.source.device

    @torch.no_grad()
    def measured(self, progress: Progress = lambda done, total: None) -> dict:
        """The source's `perplexity` and `nll`, on how many `tokens` (predicted) of how many `documents`,
        by which `protocol`; and `expected`, the mean entropy of its predictions: the `nll` that a text
        of its own would have.
        """
        nll = expected = 0.0
        count = 0
        states = self.known(progress)
        with self.source.outer(head=True) as model:
            for ours, targets in self.rows(states):
                logits = self.source.head(model, ours)
                nll += losses(logits, targets).sum().item()
                logs = logits.log_softmax(-1)
                expected -= logs.exp().mul_(logs).sum(dtype=torch.float64).item()
                count += len(targets)
        return self.about(nll, count) | {"expected": expected / count}

    @torch.no_grad()
    def compared(self, stream: BlockStream, progress: Progress = lambda done, total: None) -> dict:
        """The same of another stream; also `kl`, how far its distribution of the next token is from the
        source's (Kullback-Leibler divergence, nats a token), and `agreement`, the share of tokens where
        both hold the same one for the likeliest.
        """
        nll = kl = 0.0
        agreed = count = 0
        known, states = self.known(), run(stream, self.batches, progress)
        with self.source.outer(head=True) as dense, stream.outer(head=True) as model:
            for theirs, ours, targets in self.rows(known, states):
                expected, logits = self.source.head(dense, theirs), stream.head(model, ours)
                nll += losses(logits, targets).sum().item()
                kl += divergence(logits, expected).double().sum().item()
                agreed += (logits.argmax(-1) == expected.argmax(-1)).sum().item()
                count += len(targets)
        states.discard()
        return self.about(nll, count) | {"kl": kl / count, "agreement": agreed / count}

    def known(self, progress: Progress = lambda done, total: None) -> Activations:
        """What leaves the source's last block."""
        if self.states is None:
            self.states = run(self.source, self.batches, progress)
        return self.states

    def rows(self, *states: Activations) -> Iterator[tuple[torch.Tensor, ...]]:
        """What the head predicts from, of each of `states` [tokens, hidden], and the ids to predict
        [tokens]: so many at once that their logits are few enough.
        """
        device, few = self.source.device, logits_rows(self.source.checkpoint.vocabulary)
        for i, batch in enumerate(self.batches):
            targets = batch.targets(device)
            hidden = [batch.predicting(known.get(i, device)) for known in states]
            yield from zip(*(tensor.split(few) for tensor in (*hidden, targets)), strict=True)

    def about(self, nll: float, count: int) -> dict:
        return {
            "perplexity": torch.tensor(nll / count, dtype=torch.float64).exp().item(),
            "nll": nll / count,
            "tokens": count,
            "documents": len(self.tokens.sequences),
            "protocol": self.tokens.protocol,
        }


def run(stream: BlockStream, batches: list[Batch], progress: Progress) -> Activations:
    """What leaves the last block of every batch."""

    def visit(index: int, layer, forward) -> None:
        for _ in forward():
            pass
        progress(index + 1, stream.checkpoint.blocks)

    return stream.run([batch.ids for batch in batches], visit)


def losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats of every target, float64 [tokens]."""
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none").double()
