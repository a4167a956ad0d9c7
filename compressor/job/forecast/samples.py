"""Seconds of single steps on this machine, each timed once or twice on one block of the model."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch
from torch import nn

from compressor.model.activations import states_of
from compressor.model.exact_logits import wide_linear
from compressor.model.finite import check_block
from compressor.model.layers import second_half, trained_of_ffn
from compressor.model.modules import loaded
from compressor.model.stream import BlockStream
from compressor.model.units import BlockGeometry
from compressor.repairing.losses import looked_at, predictions, relative_distance
from compressor.repairing.refine import STEP_TOKENS, Course, Example
from compressor.scoring.methods import METHODS
from compressor.scoring.methods.statistics import BlockStatistics
from compressor.scoring.selection import FINE_CHANNELS
from compressor.solvers.elimination import eliminate
from compressor.solvers.ridge import GRID, Moments, ridge
from compressor.text.tokens import Batch, TokenSet

Found = TypeVar("Found")

CHANNELS = (
    1024  # of the matrices whose algebra is timed; how what larger ones take grows is told by
)
HALF = CHANNELS // 2  # half as many: at least as the square, and at most as the cube
AGAIN = 2.0  # seconds: what took less the first time is timed once more, warm
WIDENED = 16  # tokens of a prompt


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of a step, the less of two times: the first prepares things, either may be disturbed."""
    least = math.inf
    for _ in range(2):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent = time.perf_counter() - begun
        least = min(least, spent)
        if spent > AGAIN:
            break
    return least


def grown(seconds: Callable[[int], float], channels: int, width: int = 1) -> float:
    """What matrices of so many channels take, to judge from `seconds` of small ones; all are multiples
    of a width.
    """
    some = max(width, min(channels, CHANNELS) // width * width)
    spent = seconds(some)
    if some == channels:
        return spent
    less = max(width, HALF // width * width)
    power = math.log(spent / seconds(less), some / less) if less < some else 3
    return spent * (channels / some) ** min(3, max(2, power))


@dataclass(frozen=True)
class Bench:
    """One block with its weights in place, and what it is called with on some tokens of a text."""

    stream: BlockStream
    block: int
    layer: nn.Module
    hidden: torch.Tensor  # [1, tokens, hidden]
    args: tuple
    keywords: dict

    @property
    def tokens(self) -> int:
        return self.hidden.shape[1]

    @property
    def batch(self) -> Batch:
        """As many real tokens."""
        ids = torch.zeros(self.hidden.shape[:2], dtype=torch.int64)
        return Batch(ids, torch.ones_like(ids, dtype=torch.bool))

    @property
    def geometry(self) -> BlockGeometry:
        return BlockGeometry.of(self.stream.checkpoint, self.block)

    def run(self, layer: nn.Module | None = None, hidden: torch.Tensor | None = None):
        hidden = self.hidden if hidden is None else hidden
        return states_of((layer or self.layer)(hidden, *self.args, **self.keywords))

    def seconds_of(self, work: Callable[[], object]) -> float:
        return seconds_of(work, self.hidden.device)

    # -- a token through the block ----------------------------------------------------------------

    @torch.no_grad()
    def forward(self) -> float:
        return self.seconds_of(self.run) / self.tokens

    @torch.no_grad()
    def scored(self, method: str, mode: str | None) -> float:
        """With what the method sums; of one that needs gradients, with its backward."""
        chosen = METHODS[method]
        if chosen.observe is not None:
            return self.observed(chosen)
        wanted = chosen.wants(chosen.check_mode(mode))
        with BlockStatistics(self.layer, self.geometry, wanted) as statistics:
            statistics.batch = self.batch
            return self.forward()

    def observed(self, method) -> float:
        with method.observe(self.layer, self.geometry, self.block, method.grains) as observer:

            def step() -> None:
                hidden = self.hidden.clone().requires_grad_()
                with torch.enable_grad():
                    out = self.run(hidden=hidden)
                    out.backward(torch.full_like(out, 1e-3))
                observer.end_sequence(self.tokens - 1)

            return self.seconds_of(step) / self.tokens

    def trained(self, ffn_alone: bool = False) -> float:
        """In a training of the block, or of its FFN alone: forward, backward and a step."""
        family = self.geometry.family
        names = trained_of_ffn(family) if ffn_alone else family.projections()
        example = Example(self.hidden, self.args, self.keywords, self.hidden, self.batch)
        if ffn_alone:
            example = replace(example, args=(self.hidden,), keywords={})
        weights = {n: self.layer.get_parameter(n).detach() for n in names}
        course = Course(self.layer, weights, lambda _: example, range(1), relative_distance)
        steps = course.trained(1e-6, [[0]] * 2)
        with second_half(self.layer, family) if ffn_alone else nullcontext():
            return self.seconds_of(lambda: next(steps)) / self.tokens

    def summed(self, channels: int, outputs: int, dtype: torch.dtype = torch.float32) -> float:
        """The sums of a regression over what a projection is fed."""
        device = self.hidden.device
        sums = Moments.empty(channels, outputs, device, dtype)
        inputs, targets = (torch.ones(self.tokens, n, device=device) for n in (channels, outputs))
        return self.seconds_of(lambda: sums.add(inputs, targets)) / self.tokens

    @torch.no_grad()
    def predicted(self) -> float:
        """The logits of a token."""
        with self.stream.outer(head=True) as model:
            rows = self.hidden[0, :64]
            return self.seconds_of(lambda: self.stream.head(model, rows)) / len(rows)

    def told_apart(self) -> float:
        """How far the predictions from a stream are from another's, and the gradient: of a token."""
        with self.stream.outer(head=True) as model:
            loss, rows = predictions(self.stream, model), self.hidden[0, :32].float()
            some = rows[:: looked_at(self.stream, self.layer)]

            def step() -> None:
                with torch.enable_grad():
                    loss(some.clone().requires_grad_(), some).sum().backward()

            return self.seconds_of(step) / len(rows)

    # -- once a block -----------------------------------------------------------------------------

    def eliminated(self, channels: int, units: int) -> float:
        """The order of elimination of all units of a projection."""
        dtype = torch.float64 if channels <= FINE_CHANNELS else torch.float32
        width = channels // units

        def seconds(some: int) -> float:
            gram = self.positive(some, dtype)
            weight = self.numbers(self.hidden.shape[2], some).to(dtype)
            scores = torch.ones(some // width, dtype=dtype, device=weight.device)
            return self.seconds_of(lambda: eliminate(gram, weight, scores))

        return grown(seconds, channels, width)

    def regressed(self, channels: int) -> float:
        """A ridge regression of a projection, with all lambdas."""

        def seconds(some: int) -> float:
            gram, cross = self.positive(some), self.numbers(self.hidden.shape[2], some)
            weight, held = torch.zeros_like(cross), gram.clone()

            def solve() -> None:
                ridge(gram.clone(), cross.clone(), weight, held, cross.clone(), 1e9, GRID)

            return self.seconds_of(solve)

        return grown(seconds, channels)

    def widened(self) -> float:
        """A weight of a projection in a verification, which computes in float32."""
        experts = self.geometry.family.experts  # whose widening takes no other time
        name = self.geometry.output_module("attention" if experts else "ffn")
        module = cast(nn.Linear, self.layer.get_submodule(name))
        alike = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        alike.weight = nn.Parameter(module.weight.detach(), requires_grad=False)
        inputs = torch.ones(WIDENED, module.in_features, device=self.hidden.device)
        with torch.no_grad():
            return self.seconds_of(lambda: wide_linear(alike, inputs)) / alike.weight.numel()

    def numbers(self, *shape: int) -> torch.Tensor:
        """Random ones, the same every time, without touching the generator of anybody else."""
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return drawn.to(self.hidden.device)

    def positive(self, size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A positive definite matrix."""
        drawn = self.numbers(size, size).to(dtype)
        return drawn @ drawn.T / size + torch.eye(size, dtype=dtype, device=drawn.device)


def on_a_block(stream: BlockStream, tokens: TokenSet, measure: Callable[[Bench], Found]) -> Found:
    """What `measure` finds on the middle block and the first sequence of a text."""
    block = stream.checkpoint.blocks // 2
    stream = copy.copy(stream)
    stream.place = None  # these few states need no files
    longest = max(tokens.sequences, key=len)[None, :STEP_TOKENS]
    states, (calls,) = stream.record([longest])
    (_, weights), *_ = stream.weights(range(block, block + 1))
    with loaded(stream.layers[block], weights) as layer:
        check_block(stream.checkpoint, block, weights)
        hidden, (args, keywords) = states.get(0, stream.device), calls[block]
        return measure(Bench(stream, block, layer, hidden, args, keywords))
