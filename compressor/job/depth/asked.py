"""Options of a cut by depth judged by themselves, before the source is read and torch is imported."""

from compressor.config.amounts import AUTO
from compressor.config.job import JobConfig
from compressor.config.options import check_values, given_options
from compressor.config.plan import PlanConfig
from compressor.errors import InputError

OF_WIDTHS = ("--align", "--tp", "besa_sampling")


def check_depth(asked: JobConfig) -> None:
    """What is asked of a cut of whole blocks, and that nothing is asked that it has no use for."""
    plan, score = asked.plan, asked.score
    check_values(plan)
    if plan.drop_blocks is None:
        if not plan.fold:
            raise InputError(
                "fold is for blocks that are dropped; add --drop-blocks, or leave it out."
            )
        return
    if plan.drop_blocks == AUTO:
        if len(plan.targets) != 1:
            raise InputError(
                f"--drop-blocks {AUTO} decides for one target; give --keep, --keep-blocks or --target, "
                "and one of them once."
            )
        if score.statistics == "pruned":
            raise InputError(
                f"Statistics of the pruned model are of widths that --drop-blocks {AUTO} does not know "
                "yet; give a number of blocks, or leave statistics out."
            )
    if plan.targets:
        return
    idle = [flag for flag in given_options(plan) if flag in OF_WIDTHS] + given_options(score)
    idle += ["--allocate"] * (plan.allocate not in (None, "measured"))
    if idle:
        raise InputError(
            f"{idle[0]} is for widths, and --drop-blocks alone leaves them as they are; add --keep, or "
            "leave it out."
        )


def check_no_depth(plan: PlanConfig) -> None:
    if plan.drop_blocks is not None:
        raise InputError(
            "Blocks are dropped by compress, which plans and folds them; leave drop_blocks out here."
        )
