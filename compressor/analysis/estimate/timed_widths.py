"""The clock by widths: blocks of random weights, cut narrower and narrower.

Up to `BLOCKS` blocks, spread over the model, run between an embedding and a head of its real sizes. The
time of the blocks within a pass (a prefill, or a decode step with a static cache), less that of their
FFNs, run right after it in turn, is the attention's, with the blocks' norms; the pass less its blocks is
`other`. FFNs of other widths are run alone, in turn. Each time is the least of all passes, after warming
up, in `ROUNDS` rounds through the widths: what else a machine does only adds to it, for seconds on end,
and where it is busy half of the time a median falls on either side. More units never make a block
quicker, but what noise is left can, and some shapes suit a kernel better than narrower ones: each cost
is the largest of those up to its width (a running maximum).
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import cast

import torch
from torch import nn

from compressor.analysis.estimate.measuring import (
    STEPS,
    WARM,
    WITHOUT,
    check_context,
    clocked,
    decode_of,
    now,
    prefill_of,
)
from compressor.cutting.cut import cut_block
from compressor.errors import MachineError
from compressor.model.checkpoint import Checkpoint
from compressor.model.loading import check_room
from compressor.model.modules import assign, make_linear
from compressor.model.per_layer import model_of
from compressor.model.work import Step

BLOCKS = 6
ROUNDS, SECONDS = 4, 0.25  # of passes at each width in a round, at least
PREFILLS = 7


@torch.inference_mode()
def timed(
    checkpoint: Checkpoint,
    device: str,
    step: Step,
    widths: dict[str, list[int]],
    progress: Callable[[int, int], None],
) -> dict:
    """Seconds of each group by width, and of `other`."""
    family, chosen = checkpoint.family, spread(range(checkpoint.blocks), BLOCKS)
    names = [checkpoint.block_name(b, name) for b in chosen for name in checkpoint.block_tensors(b)]
    held = (checkpoint.tensors[name] for name in (*names, *checkpoint.outer_tensors()))
    check_context(step.context)
    check_room(checkpoint, sum(t.end - t.begin for t in held), device, WITHOUT)
    size = step.batch, step.tokens, checkpoint.hidden_size
    x = torch.randn(size, dtype=checkpoint.dtype).to(device)
    count = STEPS if step.tokens == 1 else PREFILLS
    least, most = widths["attention"][0], widths["ffn"][-1]
    blocks, ffns, other = defaultdict(list), defaultdict(list), []
    for done in range(ROUNDS):
        model = shortened(checkpoint, chosen).to(device).eval()
        layers = cast(nn.ModuleList, model.get_submodule(family.layers))

        def feed(layers=layers) -> None:
            for layer in layers:
                family.feed_forward(layer, x)

        for n in reversed(widths["attention"]):
            narrow(layers, checkpoint, {"attention": n, "ffn": most})
            for whole, inner, ffn in repeated(partial(passes_of, model, layers, feed, step)):
                blocks[n].append(inner)
                ffns[most].append(ffn)
                other.append(whole - inner)

        def alone(feed=feed) -> list[float]:
            return [clocked(feed, x.device) for _ in range(count)]

        for n in reversed(widths["ffn"]):
            narrow(layers, checkpoint, {"attention": least, "ffn": n})
            feed()
            ffns[n] += repeated(alone)
        progress(done + 1, ROUNDS)
    ffn = {n: min(seconds) / len(chosen) for n, seconds in ffns.items()}
    attention = {n: min(seconds) / len(chosen) - ffn[most] for n, seconds in blocks.items()}
    return {
        "attention": rising(attention, "attention"),
        "ffn": rising(ffn, "ffn"),
        "other": min(other),
    }


def repeated(measure: Callable[[], list]) -> list:
    """All that it finds in `SECONDS`, or once."""
    end, results = time.monotonic() + SECONDS, measure()
    while time.monotonic() < end:
        results += measure()
    return results


def spread(items: Sequence[int], most: int) -> list[int]:
    """So many of the items at even distances, the first and the last among them."""
    count = min(most, len(items))
    return [items[i * (len(items) - 1) // max(count - 1, 1)] for i in range(count)]


def shortened(checkpoint: Checkpoint, chosen: Sequence[int]) -> nn.Module:
    """A model of these blocks alone, with random weights."""
    config, family = checkpoint.model_config(), checkpoint.family
    key = "num_hidden_layers"
    setattr(config, family.spellings.get(key, key), len(chosen))
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = [kinds[block] for block in chosen]
    return make_linear(model_of(config, family, checkpoint.dtype))


def narrow(layers: nn.ModuleList, checkpoint: Checkpoint, units: dict[str, int]) -> None:
    """Leave the first so many units of each group in every block."""
    family = checkpoint.family
    kept = {group: range(count) for group, count in units.items()}
    for layer in layers:
        weights = {name: p.data for name, p in layer.named_parameters()}
        small = cut_block(weights, checkpoint, kept)
        if family.transposed:  # as its class has them in memory
            small = {n: t.t().contiguous().t() if t.dim() == 2 else t for n, t in small.items()}
        assign(layer, small)
        family.fit(layer, kept["attention"])


def passes_of(
    model: nn.Module, layers: nn.ModuleList, feed: Callable, step: Step
) -> list[tuple[float, float, float]]:
    """Seconds of passes: whole, their blocks', and of the blocks' FFNs after each."""
    if step.tokens == 1:
        run, count = decode_of(model, step.batch, step.context)
        warm = min(WARM, count - 1)
    else:
        run, count = prefill_of(model, step.batch, step.context), 1 + PREFILLS
        warm = 1
    device = cast(torch.device, model.device)
    with within(layers, device) as inner:
        passes = [(clocked(run, device), clocked(feed, device)) for _ in range(count)]
    pairs = zip(passes, inner, strict=True)
    return [(whole, blocks, ffn) for (whole, ffn), blocks in pairs][warm:]


@contextmanager
def within(layers: nn.ModuleList, device: torch.device) -> Iterator[list[float]]:
    """Seconds from the first block's begin to the last one's end, of every pass while open."""
    spent, begun = [], []

    def begin(*_) -> None:
        begun.append(now(device))

    def end(*_) -> None:
        spent.append(now(device) - begun[-1])

    with layers[0].register_forward_pre_hook(begin), layers[-1].register_forward_hook(end):
        yield spent


def rising(costs: dict[int, float], group: str) -> dict[int, float]:
    """The running maximum, by ascending widths."""
    ordered = dict(sorted(costs.items()))
    maxima = dict(zip(ordered, accumulate(ordered.values(), max), strict=True))
    least, cost = next(iter(maxima.items()))
    if cost <= 0:
        raise MachineError(
            f"The {group} of {least} units took {1e3 * cost:.4f} ms by the clock, which is noise; run "
            "it again while the machine is idle, or with a larger --batch or --context."
        )
    return maxima
