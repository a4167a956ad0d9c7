"""What BESA is compared with: magnitude, Wanda and SparseGPT, each as its authors publish it.

    prune(block, sparsity) -> the block's projections with zeros, by name

magnitude   the smallest |W| of each matrix: per layer, as Wanda's program has it
wanda       the smallest |W_rc| ||x_c||_2 of each row, floor(sparsity * columns) of them, so that the
            sparsity reached is a little below the one asked (arXiv 2306.11695)
sparsegpt   the cheapest share of every 128 columns, and the others corrected (arXiv 2301.00774); all
            matrices of a block from one pass of its dense form
All on the inputs that the pruned blocks before produce.
"""

import torch

from compressor.kernels.besa_mask import besa_mask
from compressor.kernels.rank import rank
from compressor.model.block import Block, gram, observe, squares
from compressor.solvers.obs import cheapest_of_piece, correct, inverse_factor
from compressor.sparse.budget import budget


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
