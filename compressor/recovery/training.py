"""The training loop: AdamW on adapters or weights, saved as it goes, the same after an interruption.

Nothing random is carried from step to step: order and dropout are functions of the seed and the
step, the learning rate of the step. So what is trained, moments and losses are all that is saved.
Under torchrun every process takes its share of a step's sequences, and gradients are summed; each
has the whole model, or its part of it (sharding.py).
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import reduce
from torch import nn

from compressor.config.recovery import RecoveryConfig
from compressor.model.halving import Found, halving, in_words
from compressor.recovery.data import Example, RecoveryData
from compressor.recovery.history import History
from compressor.recovery.lora import base_of
from compressor.recovery.losses import differentiate, mean_loss
from compressor.recovery.precision import computed_dtype
from compressor.recovery.processes import joined
from compressor.recovery.saved import restore, save
from compressor.recovery.sharding import Sharding, own
from compressor.recovery.teacher import Teacher
from compressor.solvers.fixed_order import total

STRIDE = 1_000_003  # steps of one seed share no stream with steps of the next


def order(step: int, batch: int, count: int, seed: int) -> list[int]:
    """Which of `count` sequences a step takes: one epoch's permutation after the other."""
    chosen: list[int] = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(position, count)
        if not chosen or place == 0:
            generator = torch.Generator().manual_seed(seed * STRIDE + epoch)
            permutation = torch.randperm(count, generator=generator).tolist()
        chosen.append(permutation[place])
    return chosen


def learning_rate(step: int, recovery: RecoveryConfig) -> float:
    """Linear warm-up to the full rate, then a cosine that ends at zero after the last step."""
    warm = round(recovery.warmup * recovery.steps)
    if step < warm:
        return recovery.learning_rate * (step + 1) / warm
    share = (step - warm) / (recovery.steps - warm)
    return recovery.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class Training:
    """What is trained on, and how. dtype: `auto`, or what weights are held and products computed in
    (`precision.py`). sharding: how several processes share the model out; None: each has all of it.
    """

    recovery: RecoveryConfig
    data: RecoveryData
    seed: int = 0
    dtype: str = "auto"
    sharding: Sharding | None = None


def train(
    model: nn.Module,
    training: Training,
    state: Path,
    teacher: Teacher | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> History:
    """Train what of `model` asks for gradients (lora.load_adapted, full.load_full) in place.

    Where memory runs out, a step is made again in smaller parts, which is told: what comes of it is the
    same to rounding, but for the draws of a dropout. A sharded model's is not: the error is raised.
    Goes on where the file `state` ends, if there is one. Stops at the first loss or gradient that is not
    finite, and says so in the history.
    """
    recovery, seed, examples = training.recovery, training.seed, training.data.train
    base = base_of(model)
    device = base.get_output_embeddings().weight.device
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), weight_decay=recovery.weight_decay, fused=True
    )
    processes = joined(device)
    at_a_time = recovery.batch // recovery.accumulate
    computed = computed_dtype(device.type == "cpu", training.dtype)
    narrow: AbstractContextManager = nullcontext()
    if computed != torch.float32:
        narrow = torch.autocast(device.type, computed)
    at_once = at_a_time  # sequences of a part, as far as memory holds them

    def fitting(work: Callable[[int], Found], examples: Sequence[Example]) -> Found:
        def halved(former: int, now: int) -> None:
            nonlocal at_once
            at_once = now
            tell(in_words(device, former, now, "sequences of a step"))

        if training.sharding:  # the others are in the middle of it, too
            return work(at_once)
        longest = max(len(example.ids) for example in examples)
        return halving(work, at_once, 1, device, longest, halved)

    def judge() -> float:
        model.eval()
        held_back = training.data.held_back
        with narrow:
            return fitting(lambda many: mean_loss(base, held_back, many), held_back)

    def differentiated(step: int, chosen: list[int], many: int) -> torch.Tensor:
        """The loss of this process's share of a step, whose gradient is left in the parameters."""
        optimizer.zero_grad()  # of what memory ran out in
        torch.manual_seed(
            (seed * STRIDE + step) * processes.num_processes + processes.process_index
        )
        predicted = sum(int(examples[i].predicted.sum()) for i in chosen)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        parts = range(0, recovery.batch, at_a_time)
        for begin in parts[processes.process_index :: processes.num_processes]:
            share = chosen[begin : begin + at_a_time]
            for first in range(0, len(share), many):
                part = share[first : first + many]
                soft = teacher.soft(part).to(device) if teacher else None
                given = [examples[i] for i in part]
                with narrow:
                    loss += differentiate(base, given, predicted, soft, recovery.distill_weight)
        return loss

    history = restore(state, parameters, optimizer) or History(held_back=[[0, judge()]])
    for step in range(len(history.losses), recovery.steps):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recovery)
        chosen = order(step, recovery.batch, len(examples), seed)
        # Long sequences together: fewer paddings.
        chosen.sort(key=lambda i: -len(examples[i].ids))
        loss = fitting(partial(differentiated, step, chosen), [examples[i] for i in chosen])
        for parameter in parameters.values():
            if parameter.grad is None:  # of an expert that no token came to
                parameter.grad = torch.zeros_like(parameter)
        if processes.num_processes > 1:
            loss = reduce(loss, "sum")
            for parameter in parameters.values() if not training.sharding else ():
                parameter.grad = reduce(parameter.grad, "sum")
        norm = clip(
            [own(p.grad) for p in parameters.values()], recovery.clip_norm, training.sharding
        )
        if not math.isfinite(loss.item() + norm.item()):
            history.stopped = f"at step {step + 1} the loss is {loss:g} and its gradient {norm:g}"
            return history
        history.losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        done = step + 1
        if done % recovery.save_every == 0 or done == recovery.steps:
            history.held_back.append([done, judge()])
            save(state, parameters, optimizer, history, processes.is_main_process)
        progress(done, recovery.steps)
    return history


def clip(gradients: list[torch.Tensor], most: float, sharding: Sharding | None) -> torch.Tensor:
    """Scale the gradients down to a norm of `most`; returns what it was. They are parts if sharded."""
    squares = torch.stack([total(g.float().square()) for g in gradients]).sum()
    norm = (reduce(squares, "sum") if sharding else squares).sqrt().float()
    torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1.0))
    return norm
