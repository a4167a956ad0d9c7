"""Options of a cut of the hidden size judged by themselves, before torch is imported."""

from compressor.config.layouts import UNIFORM
from compressor.config.options import given_options
from compressor.config.plan import PlanConfig
from compressor.config.score import ScoreConfig
from compressor.errors import InputError

OWN = ("--keep-hidden", "--align")


def check_hidden(plan: PlanConfig, score: ScoreConfig, layout: str) -> None:
    """That nothing is asked beside a cut of the hidden size that it does not go with."""
    if plan.keep_hidden is None:
        return
    if plan.targets or plan.drop_blocks is not None:
        raise InputError(
            "--keep-hidden repairs toward the source's stream, and what --keep, --keep-blocks, --target "
            "and --drop-blocks leave is repaired toward the same; give it alone, and compress the "
            "result again."
        )
    idle = [flag for flag in given_options(plan) if flag not in OWN] + given_options(score)
    if idle:
        raise InputError(
            f"{idle[0]} is for units of blocks, and --keep-hidden leaves them as they are; leave it out."
        )
    if layout != UNIFORM:
        raise InputError(
            f"--layout {layout} is for blocks that differ, and --keep-hidden is one number "
            "for all of them; leave it out."
        )


def check_no_hidden(plan: PlanConfig) -> None:
    if plan.keep_hidden is not None:
        raise InputError(
            "The hidden size is cut by compress, which scores its channels; leave keep_hidden out here."
        )
