"""What lies behind the last block, fitted for a model with fewer channels in its residual stream.

With x and z what the last norm gives in the narrower and in the dense model, a head of its own is
refitted as what reads the stream in blocks is (`channels.py`). One that is the embedding cannot be, and
there the norm takes a factor a channel, by which the logits come nearest to the dense ones:

    d = argmin sum over tokens of |E (d x) - F z|^2,   drawn toward 1,

E and F the embedding's kept channels and all of them. Lambdas are chosen on sequences held back.
"""

from collections.abc import Callable
from typing import cast

import torch

from compressor.model.activations import Activations
from compressor.model.fewer_channels import FewerChannels
from compressor.repairing.fitting import Task
from compressor.solvers.ridge import GRID, Moments, Pairs, regress, ridge, summed_in, wide

ROWS = 4096  # of a head, or an embedding, at once


def fitted_outer(
    task: Task, dense: Activations, cut: Callable[[int], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The head, or the norm before it, as they are stored; nothing where the present is no worse.

    dense, cut: the streams after the last block, of every batch.
    """
    stream, source = task.stream, cast(FewerChannels, task.stream.checkpoint)
    module, device = source.last_norm.removesuffix(".weight"), stream.device

    def pairs() -> Pairs:
        with stream.outer(head=False) as ours, stream.whole.outer(head=False) as theirs:
            norms = ours.get_submodule(module), theirs.get_submodule(module)
            for i, batch in enumerate(task.batches):
                states = cut(i), dense.get(i, device)
                x, z = (wide(n(s)) for n, s in zip(norms, states, strict=True))
                yield batch.real(x), batch.real(z)

    if source.tied:
        return scaled_norm(pairs(), task.fitted, source, device)
    dtype, present = summed_in(stream.dtype), selection(source, device)
    new, _ = regress(pairs(), task.fitted, present, dtype, GRID, "the head")
    if new is None:
        return {}
    head = source.whole.read([source.family.head])[source.family.head]
    parts = [(rows.to(new) @ new).to("cpu", head.dtype) for rows in head.split(ROWS)]
    return {source.family.head: torch.cat(parts)}


def scaled_norm(
    pairs: Pairs, fitted: int, source: FewerChannels, device: torch.device
) -> dict[str, torch.Tensor]:
    """The last norm's weight with the best factors; nothing where it is best as it is.

    The factors are the solution of (E^T E * sum of x x^T) d = sum of x * E^T F z, which is a regression
    of one output. E and F are without their means over the vocabulary, which no prediction sees.
    """
    name, embedding = source.last_norm, source.family.embedding
    ours, theirs = (s.read([embedding])[embedding] for s in (source, source.whole))
    kept, all_of = products(ours, ours, device), products(ours, theirs, device)
    energy = products(theirs, theirs, device)
    fit, held = (Moments.empty(ours.shape[1], theirs.shape[1], device) for _ in range(2))
    whole = torch.zeros((), dtype=torch.float64, device=device)
    for i, (x, z) in enumerate(pairs):
        (fit if i < fitted else held).add(x, z)
        if i >= fitted:
            whole += ((z.float() @ energy) * z).sum(dtype=torch.float64)
    grams = [kept * moments.gram for moments in (fit, held)]
    crosses = [(all_of * moments.cross.T).sum(1)[None] for moments in (fit, held)]
    one = torch.ones_like(crosses[0])
    new, taken, _ = ridge(grams[0], crosses[0], one, grams[1], crosses[1], whole, GRID)
    if taken is None:
        return {}
    weight, offset = source.read([name])[name], source.family.norm_offset
    factors = new[0].to("cpu")
    return {name: (factors * (weight.to(factors) + offset) - offset).to(weight.dtype)}


def products(a: torch.Tensor, b: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A^T B of matrices [vocabulary, channels] less their means over the rows, float32."""
    sums, means = torch.zeros(a.shape[1], b.shape[1], device=device), []
    for some, others in zip(a.split(ROWS), b.split(ROWS), strict=True):
        sums += some.to(device).float().T @ others.to(device).float()
    for matrix in (a, b):
        parts = (rows.to(device).sum(0, dtype=torch.float32) for rows in matrix.split(ROWS))
        means.append(sum(parts, torch.zeros(matrix.shape[1], device=device)) / len(matrix))
    return sums - len(a) * torch.outer(*means)


def selection(source: FewerChannels, device: torch.device) -> torch.Tensor:
    """The channels that stay as a matrix [hidden, kept], float32."""
    return torch.eye(source.whole.hidden_size, device=device)[:, source.places.to(device)]
