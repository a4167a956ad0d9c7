"""Selection: which units stay, told by the scores and by what the rest can take over.

Both steps turn scores into scores, before any plan is made; so one pass serves every number of units
kept, and a plan stays a list of units that can be looked at and cut again.

    --kv-cost measured  a KV group's score is the loss change of switching it off
    --select obs        units are scored in the order of greedy elimination (`solvers/elimination.py`)
"""

from dataclasses import replace
from functools import partial

import torch

from compressor.config.choices import check_selection
from compressor.config.score import ScoreConfig
from compressor.errors import InputError
from compressor.model.observing import Entering, observed
from compressor.model.passes import Later, Passing, pass_over
from compressor.model.stream import BlockStream
from compressor.model.units import BlockGeometry
from compressor.scoring.methods import METHODS
from compressor.scoring.probing import loss_changes_in_parts
from compressor.scoring.scores import Scores, of_every_group
from compressor.solvers.elimination import eliminate
from compressor.solvers.ridge import Moments, rates, summed_in
from compressor.text.tokens import Batch, TokenSet

PROBE_SEQUENCES = 8
# Ten tokens a channel tell the order as well as a hundred: the repair after it differs by less than 1 %.
EACH_CHANNEL = 10
SELECTING = 16_384  # tokens that a selection looks at, at least
FINE_CHANNELS = 4096  # up to so many, inverses are taken in float64


def refined(
    scores: Scores,
    stream: BlockStream,
    tokens: TokenSet,
    select: str,
    kv_cost: str,
    passing: Passing = Passing(),
) -> Scores:
    """The scores with what `--select` and `--kv-cost` make of them."""
    check_selection(select, kv_cost)
    power = 2 / METHODS[scores.about["method"]].degree
    powers = {"attention": power, "ffn": power}
    if kv_cost == "measured":
        inside = replace(passing, saved=passing.saved and passing.saved / "probes")
        alone = scores
        scores = stream.ranks.told(lambda: measured(alone, stream, tokens, inside))
        powers["attention"] = 1
    if select == "obs":
        scores = compensated(scores, stream, tokens, powers, passing)
    return scores


def measured(
    scores: Scores,
    stream: BlockStream,
    tokens: TokenSet,
    passing: Passing = Passing(),
) -> Scores:
    """KV groups scored by the mean loss change, in nats a token, of switching each off; 0 where the loss
    falls. In float32, on some sequences spread over the calibration text.
    """
    checkpoint = stream.checkpoint
    wide = stream.in_float32()
    every = max(1, len(tokens.sequences) // PROBE_SEQUENCES)
    texts = TokenSet(tokens.sequences[::every][:PROBE_SEQUENCES])
    units = [block["attention"] for block in checkpoint.block_units]
    probes = [(b, "attention", u) for b, count in enumerate(units) for u in range(count)]
    changes = loss_changes_in_parts(wide, texts.batches(stream.batch_tokens), probes, passing)
    changes = changes.clamp_min(0).float()
    blocks = [
        block | {"attention": mine}
        for block, mine in zip(scores.blocks, changes.split(units), strict=True)
    ]
    return replace(scores, blocks=blocks, about=scores.about | {"kv_cost": "measured"})


def compensated(
    scores: Scores,
    stream: BlockStream,
    tokens: TokenSet,
    powers: dict[str, float],
    passing: Passing = Passing(),
) -> Scores:
    """Every group of every block scored by greedy elimination on the dense model's activations.

    Tokens count as in the repair: in proportion to 1 / (mean square of the stream that the group reads).
    powers: what makes a group's scores quadratic in what a unit contributes. Of a long text, sequences
    evenly spread are looked at. In memory are a block, and three matrices as wide as its FFN.
    """
    tokens = spread(tokens, max(units["ffn"] for units in stream.checkpoint.block_units))
    ranks = stream.ranks
    batches = TokenSet(ranks.share(tokens.sequences)).batches(stream.batch_tokens)

    def find(index: int, layer, forward) -> Later:
        geometry = BlockGeometry.of(stream.checkpoint, index)
        weights = {g: layer.get_parameter(geometry.family.output(g)) for g in geometry.units}
        dtype = summed_in(stream.dtype)
        sums = {g: Moments.empty(w.shape[1], 0, stream.device, dtype) for g, w in weights.items()}
        batch: Batch | None = None
        weighing: dict[str, torch.Tensor] = {}

        def read(groups: list[str], x: torch.Tensor) -> None:
            weighing.update(dict.fromkeys(groups, batch.real(rates(x))))

        def fed(group: str, x: torch.Tensor) -> None:
            inputs = batch.real(x).float() * weighing[group]
            sums[group].add(inputs, inputs[:, :0])

        entered = {g: geometry.family.entered(g) for g in weights}
        entering: dict[str, Entering] = {
            name: partial(read, [g for g in weights if entered[g] == name])
            for name in entered.values()
        }
        entering |= {geometry.output_module(g): partial(fed, g) for g in weights}
        with observed(layer, entering):
            order = forward()
            for batch in batches:  # noqa: B007  # the observers read it
                next(order)
            next(order, None)
        for moments in sums.values():
            moments.add_up(ranks)
        return partial(eliminated, index, weights, sums)

    def eliminated(
        index: int, weights: dict[str, torch.Tensor], sums: dict[str, Moments]
    ) -> dict[str, torch.Tensor]:
        by_group = {}
        for group, weight in weights.items():
            if not sums[group].finite:
                raise InputError(
                    f"The activations of block {index} ({group}) are not finite; "
                    "try --dtype float32."
                )
            dtype = torch.float64 if weight.shape[1] <= FINE_CHANNELS else torch.float32
            prior = scores.blocks[index][group].to(weight.device, dtype) ** powers[group]
            by_group[group] = eliminate(
                sums.pop(group).gram.div_(tokens.tokens).to(dtype), weight.to(dtype), prior
            )
            if not by_group[group].isfinite().all():
                raise InputError(
                    f"The costs of taking units of block {index} ({group}) away are not finite; try "
                    "--dtype float32."
                )
        return by_group

    blocks = pass_over(stream, [b.ids for b in batches], find, passing)
    blocks = [of_every_group(block) for block in blocks]
    return replace(scores, blocks=blocks, about=scores.about | {"select": "obs"})


def spread(tokens: TokenSet, channels: int) -> TokenSet:
    """Every so-many-th sequence, so that there are tokens enough for as many channels."""
    every = max(1, tokens.tokens // max(SELECTING, EACH_CHANNEL * channels))
    return TokenSet(tokens.sequences[::every], tokens.protocol)


def looked_at(tokens: TokenSet | None, asked: ScoreConfig, channels: int) -> TokenSet | None:
    """What a method's scores are taken on: where elimination orders the units again, no more of the text
    than that looks at, unless gradients are taken.
    """
    if tokens is None or asked.select != "obs" or METHODS[asked.method].observe is not None:
        return tokens
    return spread(tokens, channels)
