"""One training step of BESA on one block: by this package's ops and by the published construction.

    python bench/besa_step.py --width 1024 --ffn 2816 --tokens 256

A step is the forward of one sequence through a Llama block with pruned weights, its backward to theta,
and the optimizer. `mask` is what a step takes longer than one whose pruned weights are given (the
products that make the gradients of the weights are not counted as mask work). Medians of `--repeats`
steps taken in turn, and of the shares within each turn, so that a busy machine disturbs all alike; both
gradients are compared first.
With `--blocks` the time of a whole run of so many blocks follows: of each of `--samples` sequences a
step, and three more passes forward (the statistics, and the output on the dense and the pruned path).
The figures are added to bench/results/besa-step-DEVICE-DATE.json.
"""

import json
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from compressor.config.sparse import Learning
from compressor.kernels.bench import published_besa
from compressor.kernels.rank import rank
from compressor.model.activations import Activations
from compressor.model.block import Block, observe, relative_error, squares
from compressor.sparse.besa import PENALTY, Groups, Objective, begin, make_optimizer

RESULTS = Path(__file__).parent / "results"

SPARSITY = 0.503  # at which no row's cut is on the edge of a whole number, where roundings decide
READERS = [
    ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
    ["self_attn.o_proj.weight"],
    ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    ["mlp.down_proj.weight"],
]


def make_block(
    width: int, ffn: int, heads: int, kv_heads: int, tokens: int, dtype: torch.dtype, device: str
) -> Block:
    """A Llama block with normal weights and normal inputs."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=width,
        intermediate_size=ffn,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=max(tokens, 16),
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    layer = LlamaDecoderLayer(config, 0).to(device, dtype).requires_grad_(False)
    inputs = Activations(torch.device(device))
    hidden = torch.randn(1, tokens, width, device=device, dtype=dtype)
    inputs.put(0, hidden)
    positions = torch.arange(tokens, device=device)[None]
    rotary = LlamaRotaryEmbedding(config).to(device)(hidden, positions)
    called = ((), {"position_embeddings": rotary, "attention_mask": None})
    return Block(0, layer, inputs, [called], 1, torch.device(device), READERS)


def published_step(block: Block, objective: Objective, orders: dict) -> Callable:
    """The same loss with the published construction in the place of the ops."""

    def loss(theta: torch.Tensor) -> torch.Tensor:
        beta = theta.softmax(1)
        masked = {
            name: published_besa.published_mask(block.weights[name], orders[name], own)
            for name, own in objective.groups.by_matrix(beta).items()
        }
        error = relative_error(block.run(0, masked), objective.targets.get(0, block.device))
        mean = objective.shares.to(beta.dtype) @ (beta @ objective.candidates.to(beta.dtype))
        return error + PENALTY * (mean / objective.sparsity - 1) ** 2

    return loss


def given_step(block: Block, objective: Objective) -> Callable:
    """The block's part alone: pruned weights are leaves, to which the gradient goes."""
    leaves = {name: w.clone().requires_grad_() for name, w in block.weights.items()}

    def loss(theta: torch.Tensor) -> torch.Tensor:
        for leaf in leaves.values():
            leaf.grad = None
        error = relative_error(block.run(0, leaves), objective.targets.get(0, block.device))
        return error + 0 * theta[0, 0]  # so that the optimizer works here too

    return loss


def timed(steps: dict[str, Callable], repeats: int, device: str) -> dict[str, torch.Tensor]:
    """Seconds of each, float64 [repeats], called in turn."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            found[name].append(time.perf_counter() - begun)
    return {name: torch.tensor(times[1:], dtype=torch.float64) for name, times in found.items()}


def main(
    width: int = 1024,
    ffn: int = 2816,
    heads: Annotated[int | None, typer.Option(help="Of 64 channels by default.")] = None,
    kv_heads: int | None = None,
    tokens: int = 256,
    sharing: str = "row",
    dtype: str = "float32",
    device: str = "cpu",
    repeats: int = 7,
    blocks: Annotated[int | None, typer.Option(help="Of the whole model.")] = None,
    samples: int = 128,
    results: Annotated[Path, typer.Option(help="Folder for what was measured.")] = RESULTS,
) -> None:
    heads = heads or max(1, width // 64)
    block = make_block(width, ffn, heads, kv_heads or heads, tokens, getattr(torch, dtype), device)
    targets = Activations(block.device)
    norms = observe(block, squares, targets)
    scales = {name: norms[name].sqrt().float() for name in block.names}
    ranks = {name: rank(w, scales[name]) for name, w in block.weights.items()}
    orders = {
        name: published_besa.sorted_index(w, scales[name]) for name, w in block.weights.items()
    }
    groups = Groups(block.weights, sharing)
    objective = Objective(block, ranks, targets, groups, SPARSITY)
    zeros = int(SPARSITY * int(groups.sizes.sum()))
    theta = begin(groups, zeros, False).requires_grad_()
    losses = {
        "ours": lambda t: objective(t, 0),
        "published": published_step(block, objective, orders),
        "block alone": given_step(block, objective),
    }
    ours, theirs = (
        torch.autograd.grad(losses[name](theta), theta)[0] for name in ("ours", "published")
    )
    difference = ((ours - theirs).norm() / theirs.norm()).item()

    def step(loss: Callable) -> Callable:
        own = theta.detach().clone().requires_grad_()
        optimizer = make_optimizer(own, Learning(sharing))

        def run() -> None:
            optimizer.zero_grad()
            loss(own).backward()
            optimizer.step()

        return run

    steps = {name: step(loss) for name, loss in losses.items()}
    steps["forward"] = torch.no_grad()(lambda: block.run(0))
    turns = timed(steps, repeats, device)
    seconds = {name: times.median().item() for name, times in turns.items()}

    def compared(name: str, other: str) -> float:
        return (turns[name] / turns[other]).median().item()

    found = {
        "block": f"{width}/{ffn}, {heads} heads, {kv_heads or heads} of keys",
        "tokens": tokens,
        "sharing": sharing,
        "dtype": dtype,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "milliseconds": {name: round(1e3 * s, 3) for name, s in seconds.items()},
        "mask share": round(1 - compared("block alone", "ours"), 3),
        "mask share, published": round(1 - compared("block alone", "published"), 3),
        "faster": round(compared("published", "ours"), 3),
        "gradients differ by": difference,
    }
    if blocks:
        each = samples * (seconds["ours"] + 3 * seconds["forward"])
        found[f"minutes for {blocks} blocks, {samples} sequences"] = round(blocks * each / 60, 1)
    shown = Table(title="one step of BESA", show_header=False)
    for name, value in found.items():
        shown.add_row(name, str(value))
    Console().print(shown)
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"besa-step-{device}-{date.today()}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*rows, found], indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
