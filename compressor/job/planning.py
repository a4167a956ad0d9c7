"""From scores to the plan of a target, as `compress` makes it: allocated, and judged where it can be.

What decides slowly is kept in the work folder: the errors of cuts with the scores, and in the journal
the held-back losses, one after the other.
"""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from compressor.config.choices import ALLOCATIONS
from compressor.config.repair import closed_form
from compressor.job.journal import Journal
from compressor.job.keeping import SCORES
from compressor.job.settings import Settings, target_name
from compressor.job.widths import measured_lattice, open_alignment, open_reach
from compressor.measuring.besa import learn_block
from compressor.measuring.guard import held_back, judge
from compressor.measuring.landscape import measure_landscape
from compressor.model.checkpoint import Checkpoint
from compressor.model.saved_blocks import count_blocks
from compressor.model.stream import BlockStream
from compressor.planning.allocation import allocate, plan_of
from compressor.planning.allocation import protected as protected_blocks
from compressor.planning.costs import CLOSE, Costs, miss_of
from compressor.planning.plan import Plan
from compressor.planning.reach import outside_note
from compressor.planning.target import Target
from compressor.planning.told import described, in_words, kernels, width_notes
from compressor.planning.uniform import constant_splits, everywhere
from compressor.scoring.scores import Scores
from compressor.text.tokens import TokenSet


def facts_of_widths(settings: Settings, checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """What is known of the result's size before the work begins, from headers alone: label, sentence."""
    for said in outside_note(
        open_reach(settings, checkpoint), Costs.of(checkpoint), settings.targets
    ):
        yield "embedding", said
    each = [open_alignment(settings, checkpoint, target) for target in settings.targets]
    for found in each:
        yield "widths", (f"{found.target.flag}: " if len(each) > 1 else "") + in_words(found)
        for said in width_notes(found, checkpoint):
            yield "widths", said
    for said in kernels(each):
        yield "widths", said


def measure_cuts(
    settings,
    scores: Scores,
    stream,
    calibration,
    work: Path,
    meter,
    lines,
) -> None:
    """Add the errors of all cuts to the scores, and save both in the work folder, if the allocation asks
    for them. What is done of them is kept there.
    """
    if not ALLOCATIONS[settings.allocate].measured or scores.measured is not None:
        return
    widths = measured_lattice(settings, stream.checkpoint)
    fitted, _ = held_back(calibration)
    learning = None
    if settings.allocate == "besa":
        budget = settings.targets[0].budget if settings.targets else "params"
        target = Target("keep", 1, budget)
        costs = Costs.of(stream.checkpoint, budget)
        learning = partial(
            learn_block,
            prices=costs.prices[target.measure],
            seed=settings.seed,
            sampling=settings.weights.sampling or "none",
        )
    saved = work / "landscape"
    with meter.stage("allocate"), lines.stage("allocate", count_blocks(saved)) as progress:
        landscape = measure_landscape(
            scores.blocks,
            stream,
            fitted,
            widths,
            closed_form(settings.repair),
            learning,
            progress,
            saved,
            ALLOCATIONS[settings.allocate].probing,
        )
    landscape.keep_with(scores)
    scores.save(work / SCORES)
    shutil.rmtree(saved, ignore_errors=True)


def plan_target(
    settings: Settings,
    scores: Scores,
    checkpoint: Checkpoint,
    target: Target,
    stream: BlockStream,
    calibration: TokenSet | None,
    journal: Journal,
    meter,
    lines,
) -> Plan:
    """The plan of a target. Of an allocation that is judged, or exact, or a constant split the best.

    Then `about["held_back"]` holds what was compared: rows of allocation, widths and loss (nats a
    token), which one was taken, and on how much text.
    """
    how, alike = settings.allocate, settings.layout == "uniform"
    widths = open_alignment(settings, checkpoint, target)
    given = (widths.align, settings.tp, settings.protect, settings.container)
    columns = settings.quantization.columns
    plan = allocate(scores, checkpoint, target, *given, how, alike, columns)
    plan.about |= described(widths)
    if not ALLOCATIONS[how].measured:
        return plan
    protect = protected_blocks(settings.protect, checkpoint)
    plans = {how: plan}
    for other in ("exact", "uniform"):
        if other not in plans:
            plans[other] = allocate(scores, checkpoint, target, *given, other, alike, columns)
    for split in constant_splits(target, checkpoint, widths.lattice, protect):
        same = everywhere(split, checkpoint, protect)
        name = f"{split['attention']} KV groups"
        plans[name] = plan_of(scores, checkpoint, target, same, how, protect)
    plans = about_as_large(plans, how, target, checkpoint)
    shared = f"{target_name(target)} held back"
    entry = shared if alike else f"{shared}, own widths"
    # Of the uniform layout of the same job all is known but what differs with widths of their own.
    differ = {how, "exact"}
    known = {n: loss for n, loss in (journal.get(shared) or {}).items() if n not in differ}
    known |= journal.get(entry) or {}
    with meter.stage("allocate"), lines.stage("compare") as progress:
        losses = judge(
            stream,
            plans,
            calibration,
            closed_form(settings.repair),
            known,
            lambda losses: journal.put(entry, losses),
            progress,
        )
    taken = min(losses, key=losses.__getitem__)
    _, judged = held_back(calibration)
    plans[taken].about |= {
        "allocate": how,
        **described(widths),
        "held_back": {
            "taken": taken,
            "rows": [
                {
                    "allocation": name,
                    "attention": plans[name].width_range("attention"),
                    "ffn": plans[name].width_range("ffn"),
                    "loss": loss,
                }
                for name, loss in losses.items()
            ],
            "sequences": len(judged.sequences),
            "tokens": judged.tokens,
        },
    }
    return plans[taken]


def about_as_large(
    plans: dict[str, Plan], how: str, target: Target, checkpoint: Checkpoint
) -> dict[str, Plan]:
    """The plans that are fairly compared with that of `how`, since a larger one would win for nothing:
    those no farther from the target than half a point, or than that one is.
    """
    costs = Costs.of(checkpoint, target.budget)
    misses = {
        name: abs(miss_of(target, costs, costs.size(plan.widths(), target.measure)))
        for name, plan in plans.items()
    }
    return {n: plan for n, plan in plans.items() if misses[n] <= max(CLOSE, misses[how])}


def comparison_note(plan: Plan) -> list[str]:
    """A sentence where something else than the asked allocation was taken."""
    found, how = plan.about.get("held_back"), plan.about["allocate"]
    if found is None or found["taken"] == how:
        return []
    rows = {row["allocation"]: row for row in found["rows"]}
    best = rows[found["taken"]]
    return [
        f"On {found['sequences']} held-back sequences the allocation {best['allocation']} "
        f"({best['attention']} KV groups, {best['ffn']} FFN channels a block) loses less than "
        f"{how} ({best['loss']:.4f} against {rows[how]['loss']:.4f} nats a token), so it was taken."
    ]
