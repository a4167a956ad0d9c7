"""What was left open is decided, in one place: the command line and Python get the same."""

from dataclasses import replace

from compressor.config.job import JobConfig
from compressor.config.repair import KINDS
from compressor.scoring.methods import DEFAULT_METHOD, METHODS, default_allocation


def resolve(config: JobConfig) -> JobConfig:
    """The config with the method, the selection and the allocation that go with the rest of it."""
    if not config.cuts:
        return config
    asked = config.score.method
    method = asked or DEFAULT_METHOD
    score = replace(
        config.score,
        method=method,
        select=config.score.select or default_selection(method, config.repair.kind),
    )
    plan = replace(config.plan, allocate=config.plan.allocate or default_allocation(asked))
    return replace(config, score=score, plan=plan)


def default_selection(method: str, repair: str) -> str:
    """`obs` where a repair then refits what stays, which is what the elimination counts on.

    Methods that look at weights alone, or at nothing, are for comparison: theirs is the score. Of an
    unknown method or repair, which is refused elsewhere, any.
    """
    kind = KINDS.get(repair)
    looks = method in METHODS and METHODS[method].wants(METHODS[method].check_mode(None))
    return "obs" if looks and kind is not None and kind.weights else "score"
