"""The stages of a job, one by one: score, plan, cut, repair, save."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import nn

from compressor.config.choices import check_selection
from compressor.config.layouts import PER_LAYER, UNIFORM
from compressor.config.plan import PlanConfig
from compressor.config.repair import DEFAULT_REPAIR, RepairConfig
from compressor.config.score import ScoreConfig
from compressor.errors import InputError
from compressor.front.models import (
    TEMPORARY,
    Model,
    Tokens,
    asked_for,
    of_texts,
    open_source,
    tokens,
)
from compressor.job import asked, checks
from compressor.job.needs import calibrates, chosen_method, kept_states, repair_states
from compressor.job.opening import open_stream
from compressor.job.plan_scores import judged_plan, plan_scores
from compressor.job.record import make_record
from compressor.job.resolve import resolve
from compressor.job.result import open_repair
from compressor.job.run import partial_of
from compressor.model.experts import with_units
from compressor.model.fewer_blocks import FewerBlocks, without
from compressor.model.source import Source
from compressor.planning.plan import Plan
from compressor.repairing.folding import Folded, fold
from compressor.repairing.streaming import Repair
from compressor.scoring.score import score as score_units
from compressor.scoring.scores import Scores
from compressor.scoring.selection import looked_at, refined
from compressor.writing.cuts import Cut, writer_of
from compressor.writing.in_memory import build
from compressor.writing.locking import locked
from compressor.writing.record import read_record, write_record
from compressor.writing.shards import flush, publish
from compressor.writing.writer import write_folder

CUT = "compressor_record"  # of a model in memory: what compression.json would say


def score(
    model: Model,
    text: Tokens | None = None,
    method: str | None = None,
    *,
    select: str | None = None,
    kv_cost: str = "score",
    experts: str = "whole",
    seed: int = 0,
    **more,
) -> Scores:
    """How much every unit matters: float32 `blocks[b]["ffn"]` [channels], `["attention"]` [KV groups].

    text: what to calibrate on (`tokens`); a method that looks at weights alone needs none. method:
    METHOD or METHOD:MODE of `compressor.scoring`, by default llm-bip, of whole experts reap. experts:
    what goes of a mixture, `whole` ones or `channels` of each. select: `score`, or `obs`, the default of
    methods that look at activations. kv_cost: `score`, or `measured`: KV groups
    by the loss without each. more: `samples` and `length` of a text; `device`, `dtype` (to compute in),
    `max_memory`.
    """
    source = open_source(model)
    options = {"method": method, "select": select, "kv_cost": kv_cost, "seed": seed}
    options["experts"] = experts
    of_text = of_texts(more)
    mixture = source.family.experts is not None
    source = with_units(source, experts)
    config = resolve(asked_for("score", "runtime", **options, **more), mixture)
    # What goes with a repair and an allocation is decided; neither is at work here.
    config = replace(config, repair=RepairConfig("none"), plan=PlanConfig(allocate="uniform"))
    wanted = config.score
    asked.check_method(wanted)
    check_selection(wanted.select, wanted.kv_cost)
    checks.check_method(wanted, source)
    calibration = None
    if calibrates(config):
        if text is None:
            raise InputError(
                f"The method {wanted.method} looks at activations: give a text, or token ids."
            )
        calibration = tokens(text, source, **of_text)
    states = kept_states(config, source.blocks)
    stream = open_stream(config.runtime, source, TEMPORARY, states, calibration)
    seen = looked_at(calibration, wanted, source.units["ffn"])
    scores = score_units(source, chosen_method(wanted), wanted.mode, seen, stream, seed)
    if wanted.needs_text:
        scores = refined(scores, stream, calibration, wanted.select, wanted.kv_cost)
    scores.source = source
    return scores


def plan(scores: Scores, model: Model | None = None, text: Tokens | None = None, **options) -> Plan:
    """Which units stay: `blocks[b][group]`, sorted indices. See `Plan.about` for the shares reached.

    model: what was scored, if it is not where it was. text: what allocations that measure (`exact`,
    `measured`, `besa`) measure cuts on, and are judged by. options: one of `keep`, `keep_blocks`,
    `target`, and `budget`, `allocate`, `align`, `protect`, `layout`, `container`, `tp` as `compressor
    plan` has them; with a text, too, `repair` (that will follow), `device`, `dtype`.
    """
    expect(scores, Scores)
    source = scores.source if model is None else scores.seen(open_source(model))
    if source is None:
        place = Path(scores.place)
        if not place.exists():
            raise InputError(
                f"What was scored, {str(place)!r}, is no folder here; give it as `model`."
            )
        source = scores.seen(open_source(place))
    config = asked.check_planning(asked_for("plan", "repair", "write", "runtime", **options))
    if text is None:
        return plan_scores(scores, source, config)[0]
    # Its states take room.
    config = replace(config, score=ScoreConfig(scores.about.get("method")))
    calibration = tokens(text, source)
    stream = open_stream(config.runtime, source, TEMPORARY, kept_states(config, 1), calibration)
    return judged_plan(scores, config, stream, calibration)


def cut(
    model: Model,
    plan: Plan,
    out: str | Path | None = None,
    *,
    layout: str = UNIFORM,
    container: str = "auto",
) -> nn.Module | Path:
    """The model with the blocks and units of a plan alone, whose weights are the source's."""
    expect(plan, Plan)
    return made(writer_of(left(open_source(model), plan), plan, layout, container), out)


def repair(
    small: Model,
    dense: Model,
    text: Tokens,
    kind: str = DEFAULT_REPAIR,
    out: str | Path | None = None,
    **options,
) -> nn.Module | Path:
    """A cut model with its weights fitted to what the dense one computes on a text.

    small: what `cut` gave, of which the plan counts: weights come from `dense`, what it was cut from.
    What dropped blocks did is folded into those before them if it was so where the plan was made.
    kind: `refine` (or `refine:EPOCHS`), `ridge` or `none`. options: as of `score`.
    """
    record = record_of(small)
    plan = Plan(record["plan"]["blocks"], record["plan"]["about"])
    source = plan.seen(open_source(dense))
    plan.check(left(source, plan))
    of_text = of_texts(options)
    config = asked_for("repair", "runtime", repair=kind, **options)
    config.repair.check()
    calibration, states = tokens(text, source, **of_text), repair_states(config.repair.kind)
    stream = open_stream(config.runtime, source, TEMPORARY, states, calibration)
    if plan.dropped:
        folded = fold(stream, plan.dropped, calibration) if plan.folds else Folded()
        source = FewerBlocks(source, plan.dropped, folded.tensors, folded.record)
        stream = stream.without(source)
    repairing = open_repair(config.repair, stream, plan, calibration)
    changes = repairing.blocks() if repairing else None
    writer = writer_of(source, plan, record["layout"], record["container"], changes)
    return made(writer, out, repairing)


def left(source: Source, plan: Plan) -> Source:
    """What a plan leaves of the blocks of a source, which may have lost them already."""
    source = plan.seen(source)
    return source if source.dropped == plan.dropped else without(source, plan.dropped)


def expect(value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise InputError(f"Give a compressor.{kind.__name__}, not a {type(value).__name__}.")


def save(model: Model, out: str | Path, tokenizer=None) -> Path:
    """Write a model in memory, cut or not, as a folder that stock loaders read.

    tokenizer: transformers' own, which is saved with it.
    """
    source = open_source(model)
    module = getattr(source, "module", None)
    with new_folder(out) as folder:
        write_folder(writer_of(source, Plan.whole(source), PER_LAYER), folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if (settings := getattr(module, "generation_config", None)) is not None:
            settings.save_pretrained(folder)
        if (record := getattr(module, CUT, None)) is not None:
            write_record(folder, record)
    return Path(out)


def made(writer: Cut, out: str | Path | None, repairing: Repair | None = None) -> nn.Module | Path:
    """What a writer makes, with its record: a model in memory, or the new folder `out`."""
    source, plan = writer.source, writer.plan

    def record() -> dict:  # of a repair only when it is over
        return make_record(source, plan, writer.layout, writer.container, repairing)

    if out is None:
        module = build(writer)
        setattr(module, CUT, record())
        origin = getattr(source, "module", None)
        return module if origin is None else module.to(origin.device)
    with new_folder(out) as folder:
        write_folder(writer, folder)
        write_record(folder, record())
    return Path(out)


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A folder to write to, which gets the name `out` when it is complete, and else is removed."""
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists; name a new folder.")
    partial = partial_of(out)
    with locked(out):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            yield partial
            flush(partial)
            publish(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def record_of(small: Model) -> dict:
    """What is known of how a model was cut."""
    if isinstance(small, str | Path):
        record = read_record(Path(small))
    else:
        record = getattr(getattr(small, "module", small), CUT, {})
    if "plan" not in record:
        label = open_source(small).label
        raise InputError(f"It is not known how {label} was cut; give what compressor.cut made.")
    return record
