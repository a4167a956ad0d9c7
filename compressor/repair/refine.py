"""Block-wise refinement: AdamW on all that remains of a block's projections, toward the dense block.

After the closed form all projections of a block move together, fed what the cut and repaired model
computes before it. The loss is the squared distance of the block's output from the dense model's stream
after it, every token's divided by the mean square of that stream (as in the closed form). After the last
block nothing can mend what is left, so there it is what the stream is for: the divergence of the
predicted distributions from the dense model's.

What counts is the held-back loss, taken after every pass over the text (an epoch): the weights with the
smallest one are kept, those from before included. Rates rise over the first steps and fall to nothing at
the end. A step is a share of the size of what it moves, and a smaller one the more inputs a projection
sums, because steps agree in sign where weights do not (arXiv 2203.03466); so one setting does for all
tensors. Where that is too far after all, and the held-back loss runs away, the best weights return and
the next steps are a quarter as long.

In memory are the weights and AdamW's two moments in float32, and one tensor's gradient at a time: each
takes its step as soon as its gradient is whole.

Block by block reconstruction is that of BRECQ (arXiv 2102.05426) and BESA (arXiv 2402.16880); the
losses, the rates and the schedule are ours.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from compressor.blocks import BlockStream, states_of

EPOCHS = 1
STEP_TOKENS = 512  # of a step, padding included; or one sequence, where that is longer
RATE = 0.02  # how far a step moves a weight, as a share of its tensor's root mean square
WIDTH = 512  # inputs, beyond which that falls with the root of their number
WARM_UP = 20  # steps
LOGITS_ROWS = 128  # at a time; each of the float32 copies is 16 MB at a vocabulary of 32,000
RUNAWAY, SLOWER = 3, 0.25


@dataclass(frozen=True)
class Example:
    """One batch: what the block is called with, the stream it should return, and the real tokens (None:
    all; a GPU counts those of a mask before it goes on).
    """

    hidden: torch.Tensor
    args: tuple
    keywords: dict
    target: torch.Tensor
    mask: torch.Tensor | None

    def real(self, states: torch.Tensor) -> torch.Tensor:
        """Rows float32 [tokens, hidden] of states [sequences, tokens, hidden]."""
        return (states.flatten(0, 1) if self.mask is None else states[self.mask]).float()


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def relative_distance(found: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """|found - target|^2 / |target|^2 of rows [tokens, hidden]: [tokens]."""
    energy = target.square().mean(-1).clamp_min(1e-12)
    return (found - target).square().mean(-1) / energy


def divergence(found: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL(softmax(target) || softmax(found)) of logits [tokens, vocabulary]: [tokens], in nats."""
    ours, theirs = (logits.log_softmax(-1) for logits in (found, target))
    return (theirs.exp() * (theirs - ours)).sum(-1)


def predictions(stream: BlockStream, model: nn.Module) -> Loss:
    """The divergence of what the head makes of two streams, its logits in memory for some rows alone.

    model: what `stream.outer(head=True)` yields.
    """

    def measured(*rows: torch.Tensor) -> torch.Tensor:
        return divergence(*(stream.head(model, x.to(stream.dtype)) for x in rows))

    def loss(found: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        parts = zip(found.split(LOGITS_ROWS), target.split(LOGITS_ROWS), strict=True)
        return torch.cat([checkpoint(measured, *rows, use_reentrant=False) for rows in parts])

    return loss


def refine(
    module: nn.Module,
    weights: dict[str, torch.Tensor],
    example: Callable[[int], Example],
    fitted: range,
    held: range,
    measure: Loss = relative_distance,
    rate: float = RATE,
    epochs: int = EPOCHS,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The best weights, float32 if they are new, and the held-back loss before and after every epoch.

    `weights` are trained in float32 and rounded to the dtypes of the parameters of `module` whenever it
    runs; its other parameters stay. measure(outputs, targets) of rows [tokens, hidden], float32, is the
    loss of every token. Batches of `fitted` are visited in an order of their own in every epoch.
    """
    dtypes = {n: p.dtype for n, p in module.named_parameters()}
    best = {n: w.detach() for n, w in weights.items()}
    sizes = {n: step_size(w) for n, w in best.items()}

    def loss(parameters: dict[str, torch.Tensor], i: int) -> tuple[torch.Tensor, int]:
        given = example(i)
        cast = {n: p.to(dtypes[n]) for n, p in parameters.items()}
        out = functional_call(module, cast, (given.hidden, *given.args), given.keywords)
        target = given.real(given.target)
        return measure(given.real(states_of(out)), target).sum(), len(target)

    @torch.no_grad()
    def held_back(parameters: dict[str, torch.Tensor]) -> float:
        sums = [loss(parameters, i) for i in held]
        return sum(s.item() for s, _ in sums) / sum(n for _, n in sums)

    losses, trained = [held_back(best)], None
    for epoch in range(epochs):
        if trained is None:
            trained = {n: w.to(torch.float32, copy=True).requires_grad_() for n, w in best.items()}
            optimizers = {n: stepping(p) for n, p in trained.items()}
            steps = 0
        order = torch.randperm(len(fitted), generator=torch.Generator().manual_seed(epoch))
        for step, i in enumerate(order.tolist()):
            steps += 1
            share = min(1, steps / WARM_UP) * (1 - (epoch + step / len(fitted)) / epochs)
            for n, optimizer in optimizers.items():
                optimizer.param_groups[0]["lr"] = rate * share * sizes[n]
            with torch.enable_grad():
                total, tokens = loss(trained, fitted[i])
                (total / tokens).backward()
        losses.append(held_back(trained))
        if losses[-1] < min(losses[:-1]):
            last = epoch + 1 == epochs
            best = {n: p.detach() if last else p.detach().clone() for n, p in trained.items()}
        elif not losses[-1] <= RUNAWAY * min(losses[:-1]):
            trained, rate = None, rate * SLOWER
    return best, losses


def stepping(parameter: torch.Tensor) -> torch.optim.AdamW:
    """An optimizer that moves the parameter in every backward, which leaves no gradient behind."""
    optimizer = torch.optim.AdamW([parameter], betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    own = weakref.ref(optimizer)  # held by its parameter, it would outlive the training

    def step(_) -> None:
        own().step()
        own().zero_grad()

    parameter.register_post_accumulate_grad_hook(step)
    return optimizer


def step_size(weight: torch.Tensor) -> float:
    """What a rate of 1 moves a weight [outputs, inputs] by."""
    return weight.float().square().mean().sqrt().item() * min(1, (WIDTH / weight.shape[1]) ** 0.5)
