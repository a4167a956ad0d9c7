"""What a block's training lowers: how far from its aim every token is."""

from collections.abc import Callable

import torch
from torch import nn

from compressor.model.stream import BlockStream, logits_rows

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def relative_distance(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """|output - target|^2 / |target|^2 of rows [tokens, hidden]: [tokens]."""
    energy = target.square().mean(-1).clamp_min(1e-12)
    return (output - target).square().mean(-1) / energy


def divergence(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL(softmax(target) || softmax(output)) of logits [tokens, vocabulary]: [tokens], in nats."""
    ours, theirs = (logits.log_softmax(-1) for logits in (output, target))
    return (theirs.exp() * (theirs - ours)).sum(-1)


class InParts(torch.autograd.Function):
    """A loss of every row, measured for so many rows at a time; nothing of one part is kept for the next
    but the gradient, which is taken at once.
    """

    @staticmethod
    def forward(
        ctx, output: torch.Tensor, target: torch.Tensor, measured: Loss, many: int
    ) -> torch.Tensor:
        losses, gradients = [], []
        wanted = ctx.needs_input_grad[0]
        for rows, aims in zip(output.split(many), target.split(many), strict=True):
            rows = rows.detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                loss = measured(rows, aims)
                total = loss.sum()
            losses.append(loss.detach())
            if wanted:
                gradients += torch.autograd.grad(total, rows)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx, of_losses: torch.Tensor):
        (gradients,) = ctx.saved_tensors
        return of_losses[:, None] * gradients, None, None, None


def looked_at(stream: BlockStream, layer: nn.Module) -> int:
    """Of how many rows a step of this block looks at the predictions of one: every other where the head
    is larger than the block, for neighbours say much the same.
    """
    size = stream.checkpoint.vocabulary * stream.checkpoint.hidden_size
    return 2 if size > sum(p.numel() for p in layer.parameters()) else 1


def predictions(
    stream: BlockStream, model: nn.Module, dense: tuple[BlockStream, nn.Module] | None = None
) -> Loss:
    """The divergence of what the head makes of two streams, its logits in memory for some rows alone.

    model: what `stream.outer(head=True)` yields. dense: the stream and model that make predictions of
    the targets, where they are others.
    """
    many = logits_rows(stream.checkpoint.vocabulary)
    heads = (stream, model), dense or (stream, model)

    def measured(*rows: torch.Tensor) -> torch.Tensor:
        pairs = zip(heads, rows, strict=True)
        return divergence(*(whose.head(outer, x.to(whose.dtype)) for (whose, outer), x in pairs))

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return InParts.apply(output, target, measured, many)

    return loss
