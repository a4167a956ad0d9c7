"""The guard: allocations compared by the loss that the model they cut has on held-back text.

An allocation looks at blocks alone; what their errors do to the model is measured. Beside its
widths stand the constant splits, which every uniform model could have: each feasible number of KV
groups, the FFN filling the rest, all within half a point of the target, since a larger one would win
unfairly. Each is cut, repaired as the result will be, training apart (on the
other sequences), and the one of the least loss is taken. Ours.
"""

from collections.abc import Iterator, Mapping
from itertools import repeat

import torch

from compressor.cutting.cut import cut_block
from compressor.errors import InputError
from compressor.model.layers import narrowed, passed
from compressor.model.memory import trim_heap
from compressor.model.stream import BlockStream
from compressor.planning.plan import Plan
from compressor.repairing.streaming import Repair
from compressor.scoring.probing import head_nll
from compressor.text.tokens import TokenSet

JUDGED = 8  # every so many calibration sequences are held back


def held_back(tokens: TokenSet) -> tuple[TokenSet, TokenSet]:
    """The sequences to find and repair an allocation on, and those to judge it by."""
    if len(tokens.sequences) < 3:
        raise InputError(
            "Allocations are judged by a part of the calibration text, which needs at least 3 "
            f"sequences, not {len(tokens.sequences)}; raise --samples, or use --allocate uniform."
        )
    return tokens.split(JUDGED)


@torch.no_grad()
def loss_after(
    stream: BlockStream, plan: Plan, judged: TokenSet, fitted: TokenSet, repair: str = "none"
) -> float:
    """Nats a token on `judged` of the model that a plan leaves, repaired on `fitted`; streamed.

    InputError when the loss is not finite.
    """
    batches = judged.batches(stream.batch_tokens)
    checkpoint = stream.checkpoint
    states, calls = stream.record([b.ids for b in batches])
    changes: Iterator[dict[str, torch.Tensor]] = repeat({}, checkpoint.blocks)
    if repair != "none":
        changes = Repair(stream, plan, fitted, repair).blocks()
    for index, changed in enumerate(changes):
        kept = plan.blocks[index]
        weights = stream.cast(cut_block(checkpoint.read_block(index), checkpoint, kept, changed))
        table = checkpoint.families[index]
        layer = narrowed(stream.layers[index], weights, table, kept["attention"])
        states = passed(stream, layer, states, [call[index] for call in calls])
        trim_heap()
    nll = 0.0
    with stream.outer(head=True) as model:
        for i, batch in enumerate(batches):
            nll += head_nll(stream, model, states.get(i, stream.device), batch).item()
    states.discard()
    return nll / sum(batch.predicted for batch in batches)


def judge(
    stream: BlockStream,
    plans: Mapping[str, Plan],
    tokens: TokenSet,
    repair: str,
    known: Mapping[str, float] | None = None,
    done=lambda losses: None,
    progress=lambda done, total: None,
) -> dict[str, float]:
    """The held-back loss of every plan, in the order of the plans; equal plans are measured once.

    known: losses by name that need not be measured again; done(losses) after each measurement.
    """
    fitted, judged = held_back(tokens)
    losses = dict(known or {})
    for i, (name, plan) in enumerate(plans.items()):
        if name not in losses:
            equal = [losses[n] for n in losses if n in plans and plans[n].blocks == plan.blocks]
            losses[name] = equal[0] if equal else loss_after(stream, plan, judged, fitted, repair)
            done(losses)
        progress(i + 1, len(plans))
    return {name: losses[name] for name in plans}
