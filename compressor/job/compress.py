"""The main job: read, score, plan, cut, write, verify, judge, publish.

Everything happens beside DEST (`DEST.partial`, `DEST.work`); DEST appears when it is complete and
verified. `DEST.work` holds the scores, the plans, the state of a training and the journal of what is
done until the end, so that an interrupted job can be resumed.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compressor.config.amounts import AUTO
from compressor.config.command import told_of
from compressor.config.hub_names import parse_streamed
from compressor.config.job import JobConfig
from compressor.errors import InputError, QualityError
from compressor.job import quantize
from compressor.job.asked import check_asked
from compressor.job.checks import check_before_starting
from compressor.job.depth.deciding import decided
from compressor.job.depth.dropping import chosen_blocks, shortened
from compressor.job.depth.planning import plan_of_depth
from compressor.job.hidden.checks import outlined
from compressor.job.hidden.narrowing import narrowed, plan_of_hidden
from compressor.job.hub import at_hand
from compressor.job.job import Job, begin, groups_of
from compressor.job.joining import joined
from compressor.job.needs import WantedResult, decisive, kept_states
from compressor.job.planning import facts_of_widths, measure_cuts, plan_result
from compressor.job.progress import Lines
from compressor.job.publishing import publish_results
from compressor.job.recover import MERGED, Recovering, adopt, recover_one
from compressor.job.result import Done, conclude, cut_one
from compressor.job.run import open_run
from compressor.job.score_units import score_units
from compressor.job.sharing import check_same, follow
from compressor.job.shelf import EMPTY, Shelf
from compressor.job.sparsify import zero_weights
from compressor.model.experts import with_units
from compressor.model.fewer_channels import FewerChannels
from compressor.model.ranks import Alone
from compressor.quantization.dense import open_source
from compressor.recovery.training import Training
from compressor.report.card import write_card
from compressor.report.quantized import write_card as write_quantized_card
from compressor.report.result import Result
from compressor.scoring.scores import Scores


def run_job(asked: JobConfig, lines: Lines, shelf: Shelf = EMPTY) -> list[Result]:
    """Run the whole job; one result a target. `QualityError` after publishing as .rejected.

    shelf: where results of a sweep find what the others have found out.
    Of several processes that torchrun has started the first one has the results; the others end here.
    """
    with joined(asked.runtime) as ranks:
        config = check_asked(asked)  # before anything is downloaded
        check_options(config, ranks)
        if (folder := ranks.told(lambda: at_hand(asked.source))) != asked.source:
            asked = replace(asked, source=folder)
            config = check_asked(asked)
        checkpoint = with_units(open_source(config.source), config.score.experts)
        wanted = check_before_starting(config, checkpoint)
        check_same(decisive(groups_of(config), checkpoint), ranks)
        if not ranks.first:
            states = kept_states(config, checkpoint.blocks)
            follow(checkpoint, config.runtime, config.dest, states, ranks)
        known = outlined(config.plan, checkpoint, config.quantization.columns)
        for label, said in facts_of_widths(config, known, wanted) if config.cuts else ():
            lines.fact(label, said)
        config = replace(config, recovery=config.recovery.of_width(checkpoint.hidden_size))
        names = [result.name for result in wanted]
        with open_run(config.dest, config.runtime, lines, names, shelf, ranks) as run:
            job = begin(config, checkpoint, run, wanted)
            if config.sparse is not None:
                results = [zero_weights(job)]
            else:
                results = cut(job) if config.cuts else [quantize.quantize_source(job)]
            publish_results(job, results, told_of(asked))
        check_quality(results, config.runtime.max_perplexity_ratio)
    return results


def check_options(config: JobConfig, ranks: Alone) -> None:
    """Refuse what several ranks do not do."""
    plan = config.plan
    refused = {
        "--recover": config.cuts and config.recovery.method != "none",
        "--drop-blocks": config.cuts and plan.drop_blocks is not None,
        "--keep-hidden": config.cuts and plan.keep_hidden is not None,
        "--quantize without a cut": config.sparse is None and not config.cuts,
        "hf://": parse_streamed(config.source) is not None,
    }
    instead = {
        "--recover": "cut without it, and then start `torchrun -m compressor recover` on the result",
        "hf://": "give the model's name without it, which keeps all its shards",
    }
    for option, asked in refused.items():
        if asked and ranks.world > 1:
            what = instead.get(option, "start one process (`compress`), without torchrun")
            raise InputError(f"{option} is not shared out among {ranks.world} ranks; {what}.")


def check_quality(results: Sequence[Result], limit: float | None) -> None:
    """`QualityError` where a result is worse than was allowed."""
    rejected = [result for result in results if result.rejected]
    if rejected:
        worst = rejected[-1]
        raise QualityError(
            f"Perplexity went from {worst.perplexity_before:.3f} to "
            f"{worst.perplexity_after:.3f}, more than {limit:g} times; "
            f"the result is kept as {worst.dest}. Keep more, or raise --max-perplexity-ratio.",
            results,
        )


def cut(job: Job) -> list[Result]:
    """Every result of a cut of units, in the folder of unfinished ones."""
    job, scores = shallower(job)
    if scores is not None:
        measure_cuts(job, scores)
    before = job.judge.before()
    many = len(job.wanted) > 1
    results = []
    for wanted in job.run.lines.each(job.wanted):
        folder = job.run.partial / wanted.name if many else job.run.partial
        result = make_result(job, wanted, scores, folder, before)
        if many:
            result.dest = str(job.config.dest / folder.name) + ".rejected" * result.rejected
        results.append(result)
    for result in results:
        if many and result.rejected:
            final = job.run.partial / Path(result.dest).name
            shutil.rmtree(final, ignore_errors=True)
            final.with_suffix("").rename(final)
        scored = [] if scores is None else scores.about["notes"]
        result.warnings = [*job.notes, *scored, *result.warnings]
    return results


def shallower(job: Job) -> tuple[Job, Scores | None]:
    """The job on what is left of its source when blocks are dropped, or channels of the stream, and the
    scores of that; where these alone go, there are none.
    """
    plan = job.config.plan
    if plan.keep_hidden is not None:
        return narrowed(job), None
    if plan.drop_blocks == AUTO:
        return decided(job, score_units(job))
    if plan.drop_blocks is not None:
        job = shortened(job, chosen_blocks(job))
    return job, score_units(job) if plan.targets else None


def make_result(
    job: Job, wanted: WantedResult, scores: Scores | None, folder: Path, before: dict | None
) -> Result:
    """One result, cut, recovered and quantised; what an interrupted job had done of it is kept."""
    config, run = job.config, job.run
    if isinstance(job.checkpoint, FewerChannels):
        plan = plan_of_hidden(job.checkpoint, wanted.target, config.runtime.seed)
    elif scores is None:
        plan = plan_of_depth(job.checkpoint, wanted.target, config.runtime.seed)
    else:
        plan = plan_result(job, wanted, scores)
    if job.depth is not None:
        plan.about["depth"] = job.depth
    plan.save(run.work / f"{wanted.name}.json")
    done = Done.of(run.journal.get(wanted.name)) if folder.exists() else None
    if done is None:
        shutil.rmtree(folder, ignore_errors=True)
        done = cut_one(job, wanted, scores, plan, folder, before)
        run.journal.put(wanted.name, done.told())
        shutil.rmtree(run.work / "repair" / wanted.name, ignore_errors=True)
    stem = run.work / wanted.name
    if job.data is not None:
        recover_one(recovering(job), folder, folder / MERGED, stem, done)
        run.journal.put(wanted.name, done.told())
        adopt(folder)
    card = write_card
    if config.quantization.wanted:
        quantize.quantize_one(job, folder, stem, done)
        run.journal.put(wanted.name, done.told())
        quantize.adopt(folder, done.files)
        card = write_quantized_card
    conclude(config.runtime.max_perplexity_ratio, folder, done, card)
    return done.result


def recovering(job: Job) -> Recovering:
    runtime = job.config.runtime
    training = Training(job.config.recovery, job.data, runtime.seed, runtime.dtype)
    chooses = job.config.text.evaluation is not None
    return Recovering(training, job.stream.whole, job.judge, chooses, runtime.verify)
