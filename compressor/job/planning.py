"""From scores to the plan of a target, as `compress` makes it: allocated, and judged where it can be.

What decides slowly is kept in the work folder: the errors of cuts with the scores, and in the journal
the held-back losses, one after the other.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from compressor.config.choices import ALLOCATIONS
from compressor.config.job import JobConfig
from compressor.config.layouts import NAS, PER_LAYER, UNIFORM
from compressor.config.plan import PlanConfig
from compressor.config.repair import closed_form
from compressor.config.target import Target, target_name
from compressor.job.job import Job
from compressor.job.keeping import SCORES
from compressor.job.micro_batches import fitting
from compressor.job.needs import WantedResult
from compressor.job.score_units import decides_scores
from compressor.job.widths import measured_lattice, open_alignment, open_reach, wanted_widths
from compressor.measuring.besa import learn_block
from compressor.measuring.guard import held_back, judge
from compressor.measuring.landscape import Landscape, measure_landscape
from compressor.model.heads import llama_like
from compressor.model.passes import Passing
from compressor.model.saved_blocks import count_blocks
from compressor.model.source import Source
from compressor.planning.alignment import Alignment
from compressor.planning.allocation import allocate, plan_of
from compressor.planning.allocation import protected as protected_blocks
from compressor.planning.budget import identity
from compressor.planning.costs import CLOSE, Costs, miss_of
from compressor.planning.lattice import Lattice, Wanted
from compressor.planning.plan import Plan
from compressor.planning.reach import outside_note
from compressor.planning.told import described, in_words, kernels, width_notes
from compressor.planning.uniform import constant_splits, everywhere
from compressor.scoring.scores import Scores
from compressor.text.tokens import TokenSet

CUTS = "cuts.safetensors"  # of a shelf
FREE = "KV groups of their own"  # which the nas layout does not have


def facts_of_widths(
    config: JobConfig, checkpoint: Source, wanted: Sequence[WantedResult]
) -> Iterator[tuple[str, str]]:
    """What is known of the results' size before the work begins, from headers alone: label, sentence."""
    targets = config.plan.targets
    costs, reach = Costs.of(checkpoint), open_reach(config, checkpoint)
    for result in wanted if targets else ():
        left, outside = costs.size(result.widths, "params"), reach.outside
        what = "embedding" if reach.tied else "embedding and head"
        yield (
            "plan",
            f"{result.target.flag}: about {left:,} of {reach.parameters:,} parameters stay "
            f"({left / reach.parameters:.4f}), of which {outside / left:.0%} are {what}.",
        )
    for said in outside_note(reach, costs, targets):
        yield "embedding", said
    each = [open_alignment(config, checkpoint, target) for target in targets]
    for aligned in each:
        yield "widths", (f"{aligned.target.flag}: " if len(each) > 1 else "") + in_words(aligned)
        for said in width_notes(aligned, checkpoint):
            yield "widths", said
    for said in kernels(each):
        yield "widths", said


def measure_cuts(job: Job, scores: Scores) -> None:
    """Add the errors of all cuts to the scores, and save both in the work folder, if the allocation asks
    for them. What is done of them is kept there.
    """
    config, run, stream = job.config, job.run, job.stream
    how = ALLOCATIONS[config.plan.allocate]
    if not how.measured or scores.measured is not None:
        return
    widths = measured_lattice(config, job.checkpoint)
    fitted, _ = held_back(job.calibration)
    learning = None
    if config.plan.allocate == "besa":
        learning = learning_of(config.plan, job.checkpoint, config.runtime.seed)
    saved, repair = run.work / "landscape", closed_form(config.repair.kind)
    decided = decides_cuts(job, widths)
    if known := run.shelf.found(CUTS, decided):
        scores.measured = Scores.load(known).measured
        scores.save(run.work / SCORES)
        return

    def measure() -> Landscape:
        with run.stage("allocate", count_blocks(saved)) as progress:
            passing, orders = Passing(progress, saved), scores.blocks
            return measure_landscape(
                orders, stream, fitted, widths, repair, learning, how.probing, passing
            )

    landscape = fitting(run, stream, fitted, saved, measure, of_batches=how.probing)
    landscape.keep_with(scores)
    scores.save(run.work / SCORES)
    run.shelf.put(CUTS, decided, run.work / SCORES)
    shutil.rmtree(saved, ignore_errors=True)


def decides_cuts(job: Job, widths: Lattice) -> dict[str, str] | None:
    """What the errors of all cuts come of; None where they are of this job's alone."""
    plan, repair = job.config.plan, job.config.repair
    if (decided := decides_scores(job)) is None:
        return None
    prices = [identity(target.budget) for target in plan.targets[:1]]
    how = (plan.allocate, plan.besa_sampling, closed_form(repair.kind), prices, widths)
    return decided | {"cuts": str(how)}


def learning_of(plan: PlanConfig, checkpoint: Source, seed: int) -> Callable:
    """What learns the widths of a block (`learn_block`)."""
    budget = plan.targets[0].budget if plan.targets else "params"
    prices = Costs.of(checkpoint, budget).prices[Target("keep", 1, budget).measure]
    return partial(learn_block, prices=prices, seed=seed, sampling=plan.besa_sampling or "none")


def plan_result(job: Job, wanted: WantedResult, scores: Scores) -> Plan:
    """The plan of a result. Of an allocation that is judged, or exact, or a constant split the best.

    Then `about["held_back"]` holds what was compared: rows of allocation, widths and loss (nats a
    token), which one was taken, and on how much text. Beside the nas layout's is what blocks with KV
    groups of their own, too, would have given (`FREE`).
    """
    config, checkpoint, target = job.config, job.checkpoint, wanted.target
    how, protect = config.plan.allocate, config.plan.protect
    alignment = open_alignment(config, checkpoint, target, wanted.layout)

    asked = replace(wanted_widths(config, wanted.layout), align=alignment.align)

    def allocated(how: str, asked: Wanted = asked) -> Plan:
        return allocate(scores, checkpoint, target, asked, protect, how)

    plan = allocated(how)
    plan.about |= described(alignment)
    if not ALLOCATIONS[how].measured:
        return plan
    plans = {how: plan} | {n: allocated(n) for n in ("exact", "uniform") if n != how}
    whole = protected_blocks(protect, checkpoint)
    for split in constant_splits(target, checkpoint, alignment.lattice, whole):
        same = everywhere(split, checkpoint, whole)
        name = f"{split['attention']} KV groups"
        plans[name] = plan_of(scores, checkpoint, target, same, how, whole)
    if wanted.layout == NAS:
        container = llama_like(checkpoint, asked.container)
        plans[FREE] = allocated(how, replace(asked, layout=PER_LAYER, container=container))
    plans = about_as_large(plans, how, target, checkpoint)
    losses = compare(job, plans, wanted)
    return taken(plans, losses, alignment, how, held_back(job.calibration)[1])


def compare(job: Job, plans: Mapping[str, Plan], wanted: WantedResult) -> dict[str, float]:
    """The held-back loss of every plan; each is journaled."""
    journal, how = job.run.journal, job.config.plan.allocate
    shared = f"{target_name(wanted.target)} held back"
    entry = shared if wanted.layout == UNIFORM else f"{shared}, {wanted.layout}"
    # Of the uniform layout of the same job all is known but what differs with widths of their own.
    differ = {how, "exact"}
    alike = {n: loss for n, loss in (journal.get(shared) or {}).items() if n not in differ}
    repair = closed_form(job.config.repair.kind)

    def judged() -> dict[str, float]:
        known = alike | (journal.get(entry) or {})
        with job.run.stage("allocate", shown="compare") as progress:
            return judge(
                job.stream,
                plans,
                job.calibration,
                repair,
                known,
                lambda losses: journal.put(entry, losses),
                progress,
            )

    return fitting(job.run, job.stream, job.calibration, None, judged)


def taken(
    plans: Mapping[str, Plan],
    losses: Mapping[str, float],
    alignment: Alignment,
    how: str,
    judged: TokenSet,
) -> Plan:
    """The plan of the least loss that the layout has, which says what it was compared with."""
    best = min((name for name in losses if name != FREE), key=losses.__getitem__)
    plans[best].about |= {
        "allocate": how,
        **described(alignment),
        "held_back": {
            "taken": best,
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
    return plans[best]


def about_as_large(
    plans: dict[str, Plan], how: str, target: Target, checkpoint: Source
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
    compared, how = plan.about.get("held_back"), plan.about["allocate"]
    if compared is None or compared["taken"] == how:
        return []
    rows = {row["allocation"]: row for row in compared["rows"]}
    best = rows[compared["taken"]]
    return [
        f"On {compared['sequences']} held-back sequences the allocation {best['allocation']} "
        f"({best['attention']} KV groups, {best['ffn']} FFN channels a block) loses less than "
        f"{how} ({best['loss']:.4f} against {rows[how]['loss']:.4f} nats a token), so it was taken."
    ]
