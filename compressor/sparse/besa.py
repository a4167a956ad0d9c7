"""BESA (arXiv 2402.16880): how many weights every row of a block loses, learned from its output.

A row (or, with sharing `layer`, all rows of a matrix) has logits theta over the candidate sparsities
p_d = d / 100. Forward, for each matrix W [R, C] of the block (section 3.2):

    beta = softmax(theta)           alpha = sum_d beta_d p_d                                (3)
    W~   = W without the floor(alpha C) weights of each row that rank lowest by |W_rc| ||x_c||

and the gradient of W~ reaches beta straight through the probabilities of equation 4 (the op
`besa_mask`). One epoch of one sequence a step minimises

    L = mean_h ||Y_h - Y~_h||^2 / ||Y_h||^2  +  lambda ((s - target) / target)^2            (1)

s the mean alpha of the block's weights. The paper's: all of this, but for lambda and the division by
||Y_h||, which are its released program's. Ours: the start (`begin`), the optimizer's settings and
its decaying rate, and the end: theta is tilted so that exactly floor(target * weights) go, where the
program takes what came out. Y is what the dense block makes of the dense blocks' output (algorithm 1;
the program has that as an option). Of several ranks each takes a sequence of its own in a step, whose
gradient is the mean of theirs; the steps are fewer, and as much longer. With `parity`, smoothing,
start, optimizer and end are the program's:

    beta = softmax(sigmoid(theta)),    theta = 0 at first,    Prodigy,    floor(alpha C) at the end
"""

import torch
from torch.optim.lr_scheduler import LinearLR

from compressor.config.sparse import Learning
from compressor.errors import InputError
from compressor.kernels.besa_cut import besa_cut
from compressor.kernels.besa_mask import besa_mask_many
from compressor.model.activations import Activations
from compressor.model.block import Block, relative_error
from compressor.quantization.clipping import Clipping
from compressor.sparse.budget import candidates, exact_cuts, tilted

CANDIDATES = 101
PENALTY = 5.0  # lambda in every published script
WIDTH = 0.05  # standard deviation of every distribution at the start
# Of the first step; linearly down to none. A layer's gradient is that of many rows, and steadier.
LEARNING_RATE = {"row": 0.25, "layer": 0.15}
PARITY_LEARNING_RATE = 1e-2
D_COEF = {"row": 5.0, "layer": 50.0}  # of Prodigy, in the published scripts for 7B models
SCALE = 2.0**16  # of the loss: in float16, gradients of a millionth would be lost


class Groups:
    """Which rows of a block's matrices share a distribution: row g of theta [groups, D + 1]."""

    def __init__(self, weights: dict[str, torch.Tensor], sharing: str):
        self.shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        self.counts = [rows if sharing == "row" else 1 for rows, _ in self.shapes.values()]
        columns = torch.tensor([width for _, width in self.shapes.values()], dtype=torch.int32)
        sizes = [
            torch.full((count,), rows * columns // count)
            for count, (rows, columns) in zip(self.counts, self.shapes.values(), strict=True)
        ]
        device = next(iter(weights.values())).device
        self.sizes = torch.cat(sizes).to(device)  # weights of each group, int64
        self.columns = columns.repeat_interleave(torch.tensor(self.counts)).to(device)

    def by_matrix(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parts of a tensor [groups, ...], by the matrix's name."""
        return dict(zip(self.shapes, values.split(self.counts), strict=True))

    def by_row(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of values [groups] that of each row's group, [rows] by the matrix's name."""
        parts = self.by_matrix(values).items()
        return {n: part.repeat_interleave(self.shapes[n][0] // len(part)) for n, part in parts}

    def cuts(self, alpha: torch.Tensor, zeros: int) -> dict[str, torch.Tensor]:
        """int32 [rows] of every matrix, adding up to `zeros`, from alpha float64 [groups]."""
        shares = torch.cat([*self.by_row(alpha).values()])
        columns = torch.cat([*self.by_row(self.columns.long()).values()])
        cuts = exact_cuts(shares * columns, columns, zeros)
        rows = [rows for rows, _ in self.shapes.values()]
        return dict(zip(self.shapes, cuts.split(rows), strict=True))


def distribution(theta: torch.Tensor, parity: bool) -> torch.Tensor:
    """beta [groups, D + 1] (equation 3); the program smooths theta by a sigmoid."""
    return (theta.sigmoid() if parity else theta).softmax(1)


def begin(groups: Groups, zeros: int, parity: bool) -> torch.Tensor:
    """theta float32 [groups, D + 1] before the first step.

    A bell around the target, whose means are the target: wide distributions, as the program's uniform
    one, weigh the gradient of weights far from the cut, where first order is wrong.
    """
    theta = groups.sizes.new_zeros(len(groups.sizes), CANDIDATES, dtype=torch.float64)
    if parity:
        return theta.float()
    distance = candidates(CANDIDATES, theta) - zeros / int(groups.sizes.sum())
    theta -= distance.square() / (2 * WIDTH**2)
    return tilted(theta, groups.sizes, zeros).float()


def make_optimizer(
    theta: torch.Tensor, options: Learning, fewer: float = 1
) -> torch.optim.Optimizer:
    """One step size for all of theta, so many times as large as the steps are fewer."""
    if options.optimizer == "adamw":
        rate = PARITY_LEARNING_RATE if options.parity else LEARNING_RATE[options.sharing]
        rate *= fewer
        return torch.optim.AdamW([theta], lr=rate, weight_decay=0)
    from prodigyopt import Prodigy  # an optional dependency, which `Weights.check` has looked for

    return Prodigy([theta], d_coef=D_COEF[options.sharing])


class Objective:
    """The loss of one block as a function of theta (equation 1), on one sequence at a time.

    ranks: uint16, as `rank` gives them. targets: the output that the block should have on each
    sequence. sparsity: the share of its weights that should go. clipping: of weights that are
    quantised before they are pruned (section 3.3).
    """

    def __init__(
        self,
        block: Block,
        ranks: dict[str, torch.Tensor],
        targets: Activations,
        groups: Groups,
        sparsity: float,
        parity: bool = False,
        clipping: Clipping | None = None,
    ):
        self.clipping = clipping
        self.block, self.ranks, self.targets = block, ranks, targets
        self.weights, self.groups = block.weights, groups
        self.sparsity, self.parity = sparsity, parity
        self.shares = groups.sizes.double() / groups.sizes.sum()
        self.candidates = candidates(CANDIDATES, self.shares)

    def __call__(
        self, theta: torch.Tensor, sequence: int, draw: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """A scalar, differentiable in theta. draw: seed and step of sampled cuts, else the means."""
        beta = distribution(theta, self.parity)
        weights = self.clipping.quantized() if self.clipping else self.weights
        drawn = {} if draw is None else {"seed": draw[0], "offset": draw[1]}
        cut = besa_cut(beta.detach(), self.groups.columns, **drawn)
        ranks = [self.ranks[name] for name in weights]
        masked = besa_mask_many(weights.values(), ranks, beta, cut.split(self.groups.counts))
        output = self.block.run(sequence, dict(zip(weights, masked, strict=True)))
        error = relative_error(output, self.targets.get(sequence, self.block.device))
        mean = self.shares.to(beta.dtype) @ (beta @ self.candidates.to(beta.dtype))
        return error + PENALTY * (mean / self.sparsity - 1) ** 2


@torch.enable_grad()
def learn(
    block: Block,
    ranks: dict[str, torch.Tensor],
    targets: Activations,
    zeros: int,
    options: Learning,
    seed: int = 0,
    clipping: Clipping | None = None,
) -> dict[str, torch.Tensor]:
    """How many weights each row loses, int32 [rows] by the matrix's name.

    ranks, targets: as `Objective` has them. zeros: how many weights of the block go; with parity
    about so many. The seed draws the order of the sequences, and the samples. clipping: quantise
    before pruning, and learn the clipping on the same loss. InputError for a loss that is not
    finite, and for targets that are all zero.
    """
    groups = Groups(block.weights, options.sharing)
    objective = Objective(
        block, ranks, targets, groups, zeros / int(groups.sizes.sum()), options.parity, clipping
    )
    theta = begin(groups, zeros, options.parity).requires_grad_()
    ranks, order = block.ranks, shuffled(block.count, seed)
    counts = ranks.counts(block.count)
    optimizer = make_optimizer(theta, options, sum(counts) / max(counts))
    sampled = options.sampling == "categorical"
    rate = LinearLR(optimizer, 1, 1 if options.parity else 0, max(counts))
    losses = []
    for step in range(max(counts)):
        theta.grad = torch.zeros_like(theta)
        for sequence in order[step : step + 1]:  # none in the last step of a rank that has fewer
            draw = (seed, step * ranks.world + ranks.rank)
            loss = objective(theta, sequence, draw if sampled else None)
            (loss * SCALE).backward()
            losses.append(loss.detach())
        ranks.all_sum(theta.grad)
        theta.grad /= SCALE * sum(count > step for count in counts)
        optimizer.step()
        rate.step()
        if clipping:
            clipping.step(SCALE)
    ranks.same(theta)
    check_losses(torch.stack(losses), block, targets)
    theta = theta.detach()
    if options.parity:
        return groups.by_row(besa_cut(distribution(theta, True), groups.columns))
    beta = tilted(theta, groups.sizes, zeros).softmax(1)
    return groups.cuts(beta @ candidates(CANDIDATES, beta), zeros)


def shuffled(count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def check_losses(losses: torch.Tensor, block: Block, targets: Activations) -> None:
    """When all steps are done: a look at each would have the device wait for us."""
    bad = (~losses.isfinite()).nonzero()
    if not len(bad):
        return
    if not any(targets.get(i, block.device).any() for i in range(block.count)):
        raise InputError(
            f"All outputs of block {block.index} are zero, so there is nothing to learn from; the "
            "checkpoint or the calibration text is damaged."
        )
    step = int(bad[0])
    raise InputError(
        f"The loss of block {block.index} is {losses[step].item()} at step {step}; try --dtype float32."
    )
