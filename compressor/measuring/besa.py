"""BESA on channels: the split of a block between attention and FFN, learned at a ladder of budgets.

The paper (arXiv 2402.16880) learns how many weights a row loses; here the units are KV groups and FFN
channels, in the order of any score, and the candidates the widths of the lattice. For each group, with
logits theta over its candidate widths w_d:

    beta = softmax(theta)        kept = sum_d beta_d w_d        P_i = sum_{d: w_d > i} beta_d

P_i is the probability that the unit at place i of the order stays (equation 4). Forward, the best units
up to the lattice width nearest to the mean are let through (or up to one drawn from beta); backward,
the gates' gradient reaches theta through P. Of a block are minimised

    mean_h ||Y_h - Y~_h||^2 / ||Y_h||^2

over the features h of its output Y, at a fixed share of its cost. Candidates, straight-through gradient
and this loss are the paper's (the division by ||Y_h|| its released program's). Ours: units for weights;
the budget, which is met at every step (`within_budget`), where the paper's loss has a penalty: with two
distributions a block its gradient drowns the one that tells attention from FFN, and a linear price keeps
all or nothing, because errors are nearly proportional to what goes; a ladder of targets, each beginning
where the last one ended, so that one pass serves every budget; and the end: between the lattice widths
on both sides of what was learned the measured error decides.

What attention computes before o_proj does not depend on the gates: it is computed once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from compressor.config.seeding import of_block
from compressor.errors import InputError
from compressor.kernels.besa_cut import besa_cut
from compressor.kernels.gate import gated
from compressor.kernels.gated_swiglu import gated_swiglu
from compressor.model.families import Family
from compressor.model.groups import GROUPS
from compressor.model.layers import norm_of
from compressor.planning.measured import BISECTIONS
from compressor.scoring.methods.activations import known, value

TARGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # shares of a block's cost that go
STEPS = 48  # a target
STEEPEST = 1e4  # of the budget's multiplier
LEARNING_RATE = 5e-2
WIDTH = 0.15  # standard deviation of a distribution at the start, in shares of the units


def check_activation(activation: str, family: Family) -> None:
    if activation not in known(family):
        raise InputError(
            f"--allocate besa knows the activations {', '.join(known(family))}, and this model has "
            f"{activation!r}; use --allocate exact."
        )


@dataclass
class Gate:
    """The gates of one group: candidate widths float32 [candidates], ascending, and each unit's place
    in the order, int64 [units]. Both on the CPU: numbers this few would only keep a GPU waiting.
    """

    widths: torch.Tensor
    place: torch.Tensor

    @classmethod
    def of(cls, widths: Sequence[int], scores: torch.Tensor) -> "Gate":
        order = (-scores).argsort(stable=True).cpu()
        return cls(torch.tensor(widths).float(), order.argsort())

    def begin(self, share: float) -> torch.Tensor:
        """theta [candidates]: a bell at a share of the width, no narrower than the lattice is coarse."""
        shares = self.widths / self.widths[-1]
        coarse = float(shares[-1] - shares[-2]) if len(shares) > 1 else 0.0
        return -(share - shares).square() / (2 * max(WIDTH, coarse) ** 2)

    def width(self, beta: torch.Tensor, draw: tuple[int, int] | None) -> torch.Tensor:
        """The lattice width that is cut to: the nearest to the mean, or one that is drawn."""
        if draw is None or len(beta) == 1:
            return self.widths[(self.widths - beta @ self.widths).abs().argmin()]
        # The op counts steps that are removed, the last candidate being all; that is never drawn.
        removed = torch.cat((beta.flip(0), beta.new_zeros(1)))[None]
        seed, offset = draw
        steps = besa_cut(removed, len(beta), seed=seed, offset=offset)[0]
        return self.widths[len(beta) - 1 - steps]

    def gates(self, beta: torch.Tensor, draw: tuple[int, int] | None) -> torch.Tensor:
        """z [units]: 1 or 0, with the gradient of the probabilities of staying."""
        ends = torch.arange(len(self.place))
        # Of the candidates wider than i, the probabilities: 1 - those up to i.
        upto = torch.cat((beta.new_zeros(1), beta.cumsum(0)))
        stays = upto[-1] - upto[torch.searchsorted(self.widths, ends.float(), right=True)]
        hard = (ends < self.width(beta.detach(), draw)).to(beta.dtype)
        return (hard + (stays - stays.detach()))[self.place]


class Suffix:
    """A block from the heads on, as a function of the gates of both groups."""

    def __init__(self, cuts):
        """cuts: a `BlockCuts` that has observed its block."""
        find, family = cuts.layer.get_submodule, cuts.family
        self.cuts, self.activation = cuts, cuts.geometry.activation
        self.heads_of_group = cuts.geometry.channels("attention")
        self.o_proj, self.down = cuts.output("attention"), cuts.output("ffn")
        self.norm, self.up = norm_of(cuts.layer, family, "ffn"), find(family.up)
        self.gate = family.gate and find(family.gate)

    def error(self, i: int, z: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """mean_h ||Y_h - Y~_h||^2 / ||Y_h||^2 on the real tokens of batch i."""
        cuts = self.cuts
        z = {g: gates.to(cuts.device) for g, gates in z.items()}
        heads, wanted = cuts.rows(cuts.heads, i), cuts.rows(cuts.out, i)
        if "attention" in z:
            heads = gated(heads, z["attention"], self.heads_of_group)
        stream = cuts.rows(cuts.before, i) + cuts.added("attention", self.o_proj(heads))
        hidden = self.norm(cuts.rows(cuts.before, i) if cuts.geometry.parallel else stream)
        up = self.up(hidden)
        if self.gate is None:
            inner = gated(value(up, self.activation), z["ffn"])
        else:
            gate = up if self.gate is self.up else self.gate(hidden)
            gate, up = cuts.family.gate_and_up(gate, up)
            inner = gated_swiglu(gate, up, z["ffn"], self.activation)
        output = stream + cuts.added("ffn", self.down(inner))
        wanted = wanted.to(z["ffn"].dtype)
        lost = (output.to(wanted.dtype) - wanted).square().sum(0)
        return (lost / wanted.square().sum(0).clamp_min(1e-12)).mean()


def within_budget(
    thetas: Mapping[str, torch.Tensor], costs: Mapping[str, torch.Tensor], kept: float
) -> dict[str, torch.Tensor]:
    """beta of every group: softmax(theta - t cost) with the one t at which `kept` is the mean cost.

    costs: of every candidate, in shares of the whole. Differentiable in theta: t moves with it, so the
    gradient has no part along the budget.
    """

    def betas(t: torch.Tensor) -> dict[str, torch.Tensor]:
        return {g: (theta - t * costs[g]).softmax(0) for g, theta in thetas.items()}

    def mean(distributions: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return cast(torch.Tensor, sum(beta @ costs[g] for g, beta in distributions.items()))

    with torch.no_grad():
        low, high = (next(iter(costs.values())).new_tensor(sign * STEEPEST) for sign in (-1, 1))
        for _ in range(BISECTIONS):
            t = (low + high) / 2
            low, high = (t, high) if mean(betas(t)) > kept else (low, t)
        distributions = betas(t)
        slope = sum(
            beta @ costs[g].square() - (beta @ costs[g]) ** 2 for g, beta in distributions.items()
        )
    return betas(t + (mean(betas(t)) - kept) / slope.clamp_min(1e-6))


@torch.enable_grad()
def learn(
    error: Callable[[int, Mapping[str, torch.Tensor]], torch.Tensor],
    batches: int,
    gates: Mapping[str, Gate],
    prices: Mapping[str, Sequence[int]],
    seed: int = 0,
    sampling: str = "none",
    targets: Sequence[float] = TARGETS,
) -> torch.Tensor:
    """Mean units kept of each group at every target: float64 [targets, groups].

    error(batch, z): the block's relative error, differentiable in the gates. prices: of 0, 1, .. units
    of each group. The seed gives the order of the batches and what is drawn. InputError for a loss
    that is not finite.
    """
    thetas = {g: gate.begin(1 - targets[0]).requires_grad_() for g, gate in gates.items()}
    optimizer = torch.optim.AdamW(thetas.values(), lr=LEARNING_RATE, weight_decay=0)
    costs = {
        g: gate.widths.new_tensor([prices[g][int(width)] for width in gate.widths])
        for g, gate in gates.items()
    }
    whole = float(sum(cost[-1] for cost in costs.values()))
    shares = {g: cost / whole for g, cost in costs.items()}
    least = float(sum(share[0] for share in shares.values()))
    shuffled = torch.Generator().manual_seed(seed)
    path: list[list[float]] = []
    order: list[int] = []
    step = 0
    for target in targets:
        mean = dict.fromkeys(GROUPS, 0.0)
        for at in range(STEPS):
            order = order or torch.randperm(batches, generator=shuffled).tolist()
            betas = within_budget(thetas, shares, max(1 - target, least))
            z = {}
            for number, (g, gate) in enumerate(gates.items()):
                drawn = (seed, step * len(gates) + number) if sampling == "categorical" else None
                z[g] = gate.gates(betas[g], drawn)
            loss = error(order.pop(), z)
            if not loss.isfinite():
                raise InputError(f"The loss is {loss.item()} at step {step}; try --dtype float32.")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            # Of the later half of the steps the mean: single ones waver around it.
            if at >= STEPS // 2:
                for g, gate in gates.items():
                    mean[g] += float(betas[g].detach() @ gate.widths) / (STEPS - STEPS // 2)
        path.append([mean[g] for g in GROUPS])
    return torch.tensor(path, dtype=torch.float64)


def learn_block(
    index: int, cuts, scores, lattice, prices, seed: int, sampling: str
) -> torch.Tensor:
    """`learn` of a `BlockCuts` that has observed its block, on the sequences it may fit."""
    widths = lattice.of_block({g: len(scores[g]) for g in GROUPS})
    gates = {g: Gate.of(widths[g], scores[g]) for g in GROUPS if len(scores[g])}
    return learn(
        Suffix(cuts).error, cuts.first_held, gates, prices, of_block(seed, index), sampling
    )
