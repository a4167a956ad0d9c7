"""The methods that prune single weights, by name.

    prune(block, recipe, targets) -> the block's projections with zeros, by name

targets: the output that BESA's error is taken against, of each sequence; empty if that is the output
of the dense block on its own inputs, which the method then adds.

What BESA is compared with, each as its authors publish it, needs the sparsity alone of a recipe; all on
the inputs that the pruned blocks before produce:

    magnitude   the smallest |W| of each matrix: per layer, as Wanda's program has it
    wanda       the smallest |W_rc| ||x_c||_2 of each row, floor(sparsity * columns) of them, so that the
                sparsity reached is a little below the one asked (arXiv 2306.11695)
    sparsegpt   the cheapest share of every 128 columns, and the others corrected (arXiv 2301.00774); all
                matrices of a block from one pass of its dense form
"""

from collections.abc import Callable

import torch

from compressor.config.seeding import of_block
from compressor.config.sparse import Recipe
from compressor.kernels.besa_mask import besa_mask
from compressor.kernels.rank import rank
from compressor.model.activations import Activations
from compressor.model.block import Block, gram, observe, squares
from compressor.quantization.clipping import Clipping
from compressor.solvers.obs import cheapest_of_piece, cheapest_of_rows, correct, inverse_factor
from compressor.sparse.besa import learn
from compressor.sparse.budget import budget
from compressor.writing.packing import SCALE

UNROUNDED = "_unrounded"  # behind the name of a weight


def besa(block: Block, recipe: Recipe, targets: Activations) -> dict[str, torch.Tensor]:
    """Wanda's order, BESA's numbers; with `obs` its numbers, SparseGPT's order and correction."""
    norms = observe(block, squares, targets if targets.empty else None)
    ranks = {name: rank(w, norms[name].sqrt().float()) for name, w in block.weights.items()}
    zeros = budget(sum(w.numel() for w in block.weights.values()), recipe.sparsity)
    seed = of_block(recipe.seed, block.index)
    if recipe.group is not None:
        return quantized(block, ranks, targets, zeros, recipe, seed)
    cuts = learn(block, ranks, targets, zeros, recipe.besa, seed)
    if recipe.update == "obs":
        return corrected(block, cuts)
    return {name: besa_mask(w, ranks[name], None, cuts[name]) for name, w in block.weights.items()}


def quantized(
    block: Block,
    ranks: dict[str, torch.Tensor],
    targets: Activations,
    zeros: int,
    recipe: Recipe,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Quantised, then pruned, both learned together: the weights, their scales by `SCALE` names, and by
    `UNROUNDED` ones what they are pruned only.

    The order of the weights is that before rounding, which leaves equal ones.
    """
    clipping = Clipping(block.weights, recipe.group, block.count)
    cuts = learn(block, ranks, targets, zeros, recipe.besa, seed, clipping)
    pruned = {}
    for name, weight in clipping.quantized().items():
        pruned[name] = besa_mask(weight.detach(), ranks[name], None, cuts[name])
        pruned[name + SCALE] = clipping.scale(name).detach()
        pruned[name + UNROUNDED] = besa_mask(block.weights[name], ranks[name], None, cuts[name])
    return pruned


def corrected(block: Block, cuts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every matrix without `cuts` [rows] weights, corrected on what those before it then feed it."""
    done: dict[str, torch.Tensor] = {}
    for names in block.readers:
        grams = observe(block, gram, weights=done, readers=[names])
        factor = inverse_factor(grams[names[0]], f"{names[0]} in block {block.index}")
        for name in names:
            weight = block.weights[name]
            done[name] = correct(weight, factor, cheapest_of_rows(cuts[name])).to(weight.dtype)
    return done


def magnitude(block: Block, sparsity: float) -> dict[str, torch.Tensor]:
    pruned = {}
    for name, weight in block.weights.items():
        order = weight.abs().flatten().sort(stable=True).indices
        flat = weight.flatten().clone()
        flat[order[: budget(weight.numel(), sparsity)]] = 0
        pruned[name] = flat.view_as(weight)
    return pruned


def wanda(block: Block, sparsity: float) -> dict[str, torch.Tensor]:
    norms = observe(block, squares)
    pruned = {}
    for name, weight in block.weights.items():
        ranks = rank(weight, norms[name].sqrt())
        cut = torch.tensor([budget(weight.shape[1], sparsity)], dtype=torch.int32)
        pruned[name] = besa_mask(weight, ranks, None, cut.to(weight.device))
    return pruned


def sparsegpt(block: Block, sparsity: float) -> dict[str, torch.Tensor]:
    grams = observe(block, gram)
    pruned = {}
    for together in block.readers:
        factor = inverse_factor(grams[together[0]], f"{together[0]} in block {block.index}")
        for name in together:
            choice = cheapest_of_piece(sparsity)
            pruned[name] = correct(block.weights[name], factor, choice)
    return pruned


METHODS: dict[str, Callable[[Block, Recipe, Activations], dict[str, torch.Tensor]]] = {
    "besa": besa,
    "sparsegpt": lambda block, recipe, _: sparsegpt(block, recipe.sparsity),
    "wanda": lambda block, recipe, _: wanda(block, recipe.sparsity),
    "magnitude": lambda block, recipe, _: magnitude(block, recipe.sparsity),
}
