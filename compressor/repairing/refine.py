"""Block-wise refinement: AdamW on what the cut has narrowed of a block, toward the dense block.

After the closed form the projections of a block move together, fed what the cut and repaired model
computes before it: all of them, or where the attention is whole those of the FFN, whose pass over the
text takes a quarter of the time. The loss is the squared distance of the block's output from the dense
model's stream after it, every token's divided by the mean square of that stream (as in the closed form).
After the last block nothing can mend what is left, so there it is what the stream is for: the divergence
of the predicted distributions from the dense model's.

The loss of sequences held back decides, taken of the weights as they will be stored:

1. How far a step goes. How much is left to gain differs a thousandfold between blocks, and a step that
   mends one breaks another. Short trials, each from the same start, go down the rates until one is worse
   than the one before. A trial also counts half its way, since few steps are noisier than many, which
   is also why many go further than its rate: twice as far where they are eight times as many.
2. Whether to train at all: where no trial lowers the loss by `WORTHWHILE` the block stays as it is. The
   passes of an FFN alone gain ten times what a trial can show, so they are made in any case, at the
   trial's rate.
3. How far along the line from the start to where the training ended the weights go, if anywhere: of too
   long a way a part still helps. With more than one pass over the text (an epoch), the weights after an
   earlier one are kept where their loss is smaller.

Rates rise over the first steps and fall to nothing at the end. A step is a share of the size of what it
moves, and a smaller one the more inputs a projection sums, because steps agree in sign where weights do
not (arXiv 2203.03466); so one rate does for all tensors of a block.

In memory are the weights and AdamW's two moments in float32, and one tensor's gradient at a time: each
takes its step as soon as its gradient is whole. A step that memory does not hold has parts, whose
gradients are summed, so that then all of them are in memory. So it is where ranks share a step: each
has some of its sequences, and all take the step by the gradient of the whole.

Block by block reconstruction is that of BRECQ (arXiv 2102.05426) and BESA (arXiv 2402.16880); the
losses, the rates and the schedule are ours.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from compressor.model.activations import states_of
from compressor.model.ranks import ALONE, Alone
from compressor.repairing.losses import Loss, relative_distance
from compressor.repairing.stepping import Taking, step_size, stepping
from compressor.text.tokens import Batch

EPOCHS = 1  # of a whole block, and of the last one
FFN_EPOCHS = 2  # of an FFN alone; more bring its output nearer, and the predictions not
STEP_TOKENS = 512  # of a step, padding included; or one sequence, where that is longer
RATES = (0.02, 0.005, 0.00125, 0.0003)  # of a step, as shares of a tensor's root mean square
FFN_RATES = (0.02, 0.006)
TRIAL, TRIAL_STEPS = 1 / 8, 16  # of an epoch, and at least so many steps (or all)
TRIED = (1, 0.5)  # shares of a trial's way that are judged
LONGER = 1 / 3  # what is so many times as long as a trial takes this power of it as the rate
SHARES = (1, 1.4, 0.7, 0.4)  # of the training's
WORTHWHILE = 0.0005  # of the loss, in a trial: the whole gains several times as much
WARM_UP = 20  # steps, and at most a quarter of them


@dataclass(frozen=True)
class Example:
    """What the block is called with on a batch, and the stream it should return."""

    hidden: torch.Tensor
    args: tuple
    keywords: dict
    target: torch.Tensor
    batch: Batch

    def real(self, states: torch.Tensor) -> torch.Tensor:
        """Rows float32 [tokens, hidden] of states [sequences, tokens, hidden]."""
        return self.batch.real(states).float()


def alone(step: int) -> Sequence[int]:
    """A step of one batch."""
    return (step,)


@dataclass(frozen=True)
class Schedule:
    """Of a training: the rates to try, the passes over the text, and whether it is made whatever the
    trials say, at the best one's rate. every: of how many tokens a step looks at one. parts: the
    batches of a step by its number, which is that of a single one unless memory is short, or ranks
    share it; then `ahead` are the tokens of a step before this rank's.
    """

    rates: tuple[float, ...] = RATES
    epochs: int = EPOCHS
    always: bool = False
    every: int = 1
    parts: Callable[[int], Sequence[int]] = alone
    ranks: Alone = ALONE
    ahead: Callable[[int], int] = lambda step: 0


WHOLE = Schedule()
FFN_ALONE = Schedule(FFN_RATES, FFN_EPOCHS, always=True)


@dataclass(frozen=True)
class Outcome:
    """What came of a block's training.

    losses: held back, before and after every epoch (none where no trial was worth it); after: that of
    the weights taken, which are the former ones where it is losses[0]. trials: the best loss of every
    rate tried; rate: the one trained at; share: how far from start to end, of the last epoch.
    """

    losses: list[float]
    after: float
    trials: dict[float, float]
    rate: float | None = None
    share: float | None = None

    @property
    def told(self) -> dict:
        """What JSON can say of it: a loss that is not finite is None."""
        trials = [{"rate": rate, "loss": finite(v)} for rate, v in self.trials.items()]
        losses = [finite(v) for v in self.losses]
        return vars(self) | {"trials": trials, "losses": losses}


def refine(
    module: nn.Module,
    weights: dict[str, torch.Tensor],
    example: Callable[[int], Example],
    fitted: range,
    held: range,
    measure: Loss = relative_distance,
    schedule: Schedule = WHOLE,
) -> tuple[dict[str, torch.Tensor], Outcome]:
    """The best weights, in the dtypes of `weights` (as they are stored), and what came of the training.

    `weights` are trained in float32 and rounded to their dtypes and to those of the parameters of
    `module` whenever it runs; its other parameters stay. measure(outputs, targets) of rows [tokens,
    hidden], float32, is the loss of every token. The steps `fitted` are made in another order in
    every epoch; a trial sees the first of the first. example(i), held: by the numbers of batches.
    """
    course = Course(module, weights, example, held, measure, schedule)
    orders, rates, epochs = [], schedule.rates, schedule.epochs
    for epoch in range(epochs):
        places = torch.randperm(len(fitted), generator=torch.Generator().manual_seed(epoch))
        orders.append([fitted[i] for i in places.tolist()])
    before = course.held_back()
    tried = orders[0][: max(TRIAL_STEPS, round(TRIAL * len(fitted)))]
    trials: dict[float, float] = {}
    for rate in rates:
        trials[rate] = course.tried(rate, tried)
        if trials[rate] > min(trials.values()):
            break
    rate = min(trials, key=trials.get)
    if not schedule.always:
        if not trials[rate] < (1 - WORTHWHILE) * before:
            return weights, Outcome([before], before, trials)
        rate = min(rates[0], rate * (epochs * len(fitted) / len(tried)) ** LONGER)
    losses, best, after, share = [before], weights, before, None
    for epoch, moved in enumerate(course.trained(rate, orders), 1):
        losses.append(course.held_back(moved))
        if losses[-1] < after and epoch < epochs:
            best, after = course.between(moved), losses[-1]
    for part in SHARES:
        loss = losses[-1] if part == 1 else course.held_back(moved, part)
        if loss < after:
            after, share = loss, part
    if share is not None:
        best = course.between(moved, share)
    return best, Outcome(losses, after, trials, rate, share)


class Course:
    """The weights of a block on their way from where they start, and what they lose there."""

    def __init__(
        self,
        module: nn.Module,
        start: dict[str, torch.Tensor],
        example: Callable[[int], Example],
        held: range,
        measure: Loss,
        schedule: Schedule = WHOLE,
    ):
        self.parts, self.every = schedule.parts, schedule.every
        self.ranks, self.ahead = schedule.ranks, schedule.ahead
        self.module, self.example, self.held, self.measure = module, example, held, measure
        self.start = {n: w.detach() for n, w in start.items()}
        self.sizes = {n: step_size(w) for n, w in self.start.items()}
        self.dtypes = {n: p.dtype for n, p in module.named_parameters()}

    def loss(
        self, at: Callable[[str], torch.Tensor], i: int, some: slice = slice(None)
    ) -> tuple[torch.Tensor, int]:
        """The sum over `some` tokens of a batch, for the parameters at(name), and their number."""
        example = self.example(i)
        cast = {n: at(n).to(w.dtype).to(self.dtypes[n]) for n, w in self.start.items()}
        out = functional_call(self.module, cast, (example.hidden, *example.args), example.keywords)
        target = example.real(example.target)[some]
        losses = self.measure(example.real(states_of(out))[some], target)
        return losses.sum(), len(losses)

    def differentiate(self, moved: dict[str, torch.Tensor], step: int, take: Taking) -> None:
        """The gradient of a step's mean loss, part by part; with that of the last it is taken."""
        *first, last = self.parts(step)
        before = counted = 0
        for i in (*first, last):
            take.now = i == last
            # Every so-many-th token of the whole step, wherever its parts begin.
            loss, tokens = self.loss(moved.get, i, slice(-before % self.every, None, self.every))
            counted += tokens
            take.over = counted if first else None  # how many there are is known at the end
            (loss if first else loss / tokens).backward()
            before += self.example(i).batch.tokens if first else 0

    def differentiate_together(
        self, moved: dict[str, torch.Tensor], step: int, take: Taking
    ) -> None:
        """The same of a step that ranks share: the gradients of all are summed, and then taken."""
        take.now, take.over = False, None
        before, counted = self.ahead(step), 0
        for i in self.parts(step):
            loss, tokens = self.loss(moved.get, i, slice(-before % self.every, None, self.every))
            counted += tokens
            loss.backward()
            before += self.example(i).batch.tokens
        counted = sum(self.ranks.counts(counted))
        for parameter in moved.values():
            if parameter.grad is None:  # of a rank that has none of the step's tokens
                parameter.grad = torch.zeros_like(parameter)
            self.ranks.all_sum(parameter.grad)
            parameter.grad.div_(counted)

    @torch.no_grad()
    def held_back(self, moved: dict[str, torch.Tensor] | None = None, share: float = 1) -> float:
        """The held-back loss at the start or `between`; infinite where it is not a number."""
        at = self.start.get if moved is None else lambda n: self.part(n, moved, share)
        sums, tokens = [], 0
        for i in self.held:
            loss, counted = self.loss(at, i)
            sums.append(loss)
            tokens += counted
        lost = torch.tensor([sum(told(sums)), tokens], dtype=torch.float64)
        self.ranks.all_sum(lost)
        loss = (lost[0] / lost[1]).item()
        return loss if math.isfinite(loss) else math.inf

    def part(self, name: str, moved: dict[str, torch.Tensor], share: float) -> torch.Tensor:
        start, end = self.start[name], moved[name].detach()
        return end if share == 1 else torch.lerp(start.float(), end, share)

    def between(self, moved: dict[str, torch.Tensor], share: float = 1) -> dict[str, torch.Tensor]:
        """Copies of the weights that share of the way from the start, in its dtypes."""
        return {n: self.part(n, moved, share).to(w.dtype, copy=True) for n, w in self.start.items()}

    def tried(self, rate: float, order: list[int]) -> float:
        """The held-back loss that some steps at a rate come to."""
        (moved,) = self.trained(rate, [order])
        return min(self.held_back(moved, share) for share in TRIED)

    def trained(self, rate: float, orders: list[list[int]]) -> Iterator[dict[str, torch.Tensor]]:
        """From the start, the weights in float32 after each order of batches: the same tensors."""
        start = self.start.items()
        moved = {n: w.to(torch.float32, copy=True).requires_grad_() for n, w in start}
        take = Taking()
        optimizers = {n: stepping(p, take) for n, p in moved.items()}
        total, step = sum(map(len, orders)), 0
        warm_up = max(1, min(WARM_UP, total // 4))
        for order in orders:
            for i in order:
                share = min(1, (step + 1) / warm_up) * (1 - step / total)
                step += 1
                for n, optimizer in optimizers.items():
                    optimizer.param_groups[0]["lr"] = rate * share * self.sizes[n]
                with torch.enable_grad():
                    if self.ranks.world == 1:
                        self.differentiate(moved, i, take)
                        continue
                    self.differentiate_together(moved, i, take)
                for optimizer in optimizers.values():
                    optimizer.step()
                    optimizer.zero_grad()
            yield moved


def told(numbers: list[torch.Tensor]) -> list[float]:
    """What they are; the host waits for a device once."""
    return torch.stack(numbers).tolist() if numbers else []


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
