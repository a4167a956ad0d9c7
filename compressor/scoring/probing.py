"""Probes: what the loss really does when units are switched off, in one pass over the blocks.

A probe is the model without some units of one block. It is born where its block streams by, from the
dense model's input to that block; from there on it is carried through the blocks beside the dense
model, and in the end the head gives the loss of both. So the weights are read once for any number
of probes, and what a probe costs is the hidden states of the probing text: `state_bytes`.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import torch

from compressor.errors import InputError
from compressor.model.activations import states_of
from compressor.model.memory import trim_heap
from compressor.model.modules import loaded
from compressor.model.passes import Passing
from compressor.model.saved_blocks import finished_block, keep_block
from compressor.model.source import Source
from compressor.model.stream import BlockStream, logits_rows
from compressor.model.units import BlockGeometry, only_units
from compressor.text.tokens import Batch

STACKED = 2  # times a batch's tokens: of several variants, fed to a block as one batch
PART = 10  # forward passes of one part, beside which the dense model's own is little

# (block, group, unit): without this unit; (block, kept): with these alone, as `only_units` takes them.
Probe = tuple[int, str, int] | tuple[int, Mapping[str, Sequence[int]]]


@torch.no_grad()
def loss_changes(
    stream: BlockStream,
    batches: list[Batch],
    probes: Sequence[Probe],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> torch.Tensor:
    """Loss of each probe minus the dense model's: float64 [probes], in nats a token.

    The loss is total nll / predicted tokens over all batches, as in `evaluation/reference.py`.
    Differences of single units are thousandths of a nat: give a stream in float32. progress(done,
    total) counts blocks.

    InputError when a probe names what the model has not, when nothing is predicted, and when a loss
    is not finite.
    """
    for probe in probes:
        check(probe, stream.checkpoint)
    predicted = sum(batch.predicted for batch in batches)
    if not predicted:
        raise InputError(
            "The probing text predicts no token; give sequences of two tokens or more."
        )
    ids = [batch.ids for batch in batches]
    # Variant 0 is the dense model; variant v of batch i has the key v * batches + i.
    states, _ = stream.record(ids)
    _, calls = stream.record([i[:1] for i in ids])  # of one sequence: they broadcast to any number
    alive = [0]
    for index, weights in stream.weights():
        geometry = BlockGeometry.of(stream.checkpoint, index)
        with loaded(stream.layers[index], weights) as layer:
            del weights
            born = [v for v, probe in enumerate(probes, 1) if probe[0] == index]
            for i, batch in enumerate(batches):
                args, call = calls[i][index]

                def run(hidden, layer=layer, args=args, call=call) -> torch.Tensor:
                    return states_of(layer(hidden, *args, **call))

                dense = states.get(i, stream.device)
                for v in born:
                    with only_units(layer, geometry, kept_units(probes[v - 1], geometry)):
                        states.put(v * len(batches) + i, run(dense))
                size = max(1, int(STACKED * stream.batch_tokens) // batch.ids.numel())
                for begin in range(0, len(alive), size):
                    keys = [v * len(batches) + i for v in alive[begin : begin + size]]
                    hidden = torch.cat([states.get(key, stream.device) for key in keys])
                    for key, state in zip(keys, run(hidden).chunk(len(keys)), strict=True):
                        states.put(key, state)
            alive += born
        trim_heap()
        progress(index + 1, stream.checkpoint.blocks)
    nll = torch.zeros(1 + len(probes), dtype=torch.float64, device=stream.device)
    with stream.outer(head=True) as model:
        for i, batch in enumerate(batches):
            for v in range(len(nll)):
                hidden = states.get(v * len(batches) + i, stream.device)
                nll[v] += head_nll(stream, model, hidden, batch)
    states.discard()
    nll = nll.cpu()
    for v in (~nll.isfinite()).nonzero().flatten().tolist():
        where = f"with the probe {probes[v - 1]}" if v else "of the dense model"
        raise InputError(f"The loss {where} is {nll[v].item()}; try --dtype float32.")
    return (nll[1:] - nll[0]) / predicted


def loss_changes_in_parts(
    stream: BlockStream,
    batches: list[Batch],
    probes: Sequence[Probe],
    passing: Passing = Passing(),
) -> torch.Tensor:
    """`loss_changes` of probes in the order of their blocks, measured in parts of so many blocks' probes
    that the dense model's own passes do not count; finished parts are kept in the folder of `passing`.
    """
    changes, blocks = [], stream.checkpoint.blocks
    parts = divided(probes, blocks)
    for number, part in enumerate(parts):

        def told(done: int, _: int, number=number) -> None:
            passing.progress(number * blocks + done, len(parts) * blocks)

        known = finished_block(passing.saved, number)
        if known is None:
            known = {"changes": loss_changes(stream, batches, part, told)}
            keep_block(passing.saved, number, known)
        told(blocks, blocks)
        changes.append(known["changes"])
    return torch.cat(changes)


def divided(probes: Sequence[Probe], blocks: int) -> list[list[Probe]]:
    """Probes [block, ...] in parts worth `PART` forward passes or a little more; a block's together."""
    parts: list[list[Probe]] = [[]]
    passes = 0
    for block, same in groupby(probes, key=lambda probe: probe[0]):
        if passes >= PART * blocks:
            parts.append([])
            passes = 0
        some = list(same)
        parts[-1] += some
        passes += len(some) * (blocks - block)
    return parts


def head_nll(
    stream: BlockStream, model: torch.nn.Module, hidden: torch.Tensor, batch: Batch
) -> torch.Tensor:
    """Summed cross-entropy, float64 [], of a batch whose states [sequences, tokens, hidden] leave the
    last block.

    Logits are computed of some rows at a time.
    """
    rows, targets = batch.predicting(hidden), batch.targets(stream.device)
    total = torch.zeros((), dtype=torch.float64, device=rows.device)
    many = logits_rows(stream.checkpoint.vocabulary)
    for part, wanted in zip(rows.split(many), targets.split(many), strict=True):
        logits = stream.head(model, part)
        total += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").double()
    return total


def state_bytes(stream: BlockStream, batches: list[Batch], probes: int) -> int:
    """What `loss_changes` keeps on the host (or in files): the states of all probes and the dense."""
    tokens = sum(batch.ids.numel() for batch in batches)
    return (1 + probes) * tokens * stream.checkpoint.hidden_size * stream.dtype.itemsize


def sample_probes(
    units: Sequence[Mapping[str, int]], count: int, seed: int = 0
) -> list[tuple[int, str, int]]:
    """`count` single units (or all, where there are fewer), in order, drawn evenly.

    Every group of every block gives as many, as far as it has them: few KV groups are all taken, and
    the FFN channels share the rest. `units` counts every block's units by group.
    """
    if count < 1:
        raise InputError(f"The number of probes must be positive, not {count}.")
    generator = torch.Generator().manual_seed(seed)
    cells = [(block, group) for block in range(len(units)) for group in units[block]]
    order = torch.randperm(len(cells), generator=generator).tolist()
    cells = sorted((cells[i] for i in order), key=lambda cell: units[cell[0]][cell[1]])
    probes: list[tuple[int, str, int]] = []
    for done, (block, group) in enumerate(cells):
        share = (count - len(probes)) // (len(cells) - done)
        drawn = torch.randperm(units[block][group], generator=generator)[:share]
        probes += [(block, group, unit) for unit in drawn.tolist()]
    return sorted(probes)


def spearman(one: torch.Tensor, other: torch.Tensor) -> float:
    """Rank correlation of two vectors of a length; ties share their mean rank, NaN if one is flat."""
    return torch.corrcoef(torch.stack((ranks(one), ranks(other))))[0, 1].item()


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Mean ranks from 1, float64."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[place]


def kept_units(probe: Probe, geometry: BlockGeometry) -> Mapping[str, Sequence[int]]:
    if len(probe) == 2:
        return probe[1]
    _, group, lost = probe
    return {group: [unit for unit in range(geometry.units[group]) if unit != lost]}


def check(probe: Probe, checkpoint: Source) -> None:
    """Refuse a block, group or unit that the model has not."""
    block, blocks = probe[0], checkpoint.blocks
    named = probe[1] if len(probe) == 2 else {probe[1]: [probe[2]]}
    if not 0 <= block < blocks:
        raise InputError(f"There is no block {block} to probe: the model has {blocks}.")
    present = checkpoint.block_units[block]
    for group, units in named.items():
        if group not in present:
            raise InputError(f"There is no group {group!r}; groups are {', '.join(present)}.")
        for unit in units:
            if not 0 <= unit < present[group]:
                raise InputError(
                    f"There is no unit {unit} in the {group} group of a block: it has "
                    f"{present[group]}."
                )
