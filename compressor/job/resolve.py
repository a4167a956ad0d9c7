"""What was left open is decided, in one place: the command line and Python get the same."""

from dataclasses import replace
from pathlib import Path

from compressor.config.job import JobConfig
from compressor.config.json_files import object_in
from compressor.config.repair import KINDS
from compressor.scoring.methods import (
    DEFAULT_METHOD,
    DEFAULT_OF_EXPERTS,
    METHODS,
    default_allocation,
)

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")  # settings of mixtures of experts


def resolve(config: JobConfig, mixture: bool | None = None) -> JobConfig:
    """The config with the method, the selection and the allocation that go with the rest of it.

    mixture: whether the source's units are experts; None: as its folder says.
    """
    if not config.cuts:
        return config
    asked = config.score.method
    mixture = is_mixture(config.source) if mixture is None else mixture
    whole = mixture and not config.score.within_experts
    method = asked or (DEFAULT_OF_EXPERTS if whole else DEFAULT_METHOD)
    score = replace(
        config.score,
        method=method,
        select=config.score.select or default_selection(method, config.repair.kind, mixture),
    )
    plan = replace(config.plan, allocate=config.plan.allocate or default_allocation(asked))
    return replace(config, score=score, plan=plan)


def is_mixture(folder: Path) -> bool:
    """Whether the config in a folder, or that of the language model in it, counts experts."""
    config = object_in(folder / "config.json")
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    return any(part.get(count) for part in parts for count in COUNTS)


def default_selection(method: str, repair: str, mixture: bool = False) -> str:
    """`obs` where a repair then refits what stays, which is what the elimination counts on.

    Methods that look at weights alone, or at nothing, are for comparison: theirs is the score. Of an
    unknown method or repair, which is refused elsewhere, any. Experts do not replace each other.
    """
    if mixture:
        return "score"
    kind = KINDS.get(repair)
    looks = method in METHODS and METHODS[method].wants(METHODS[method].check_mode(None))
    return "obs" if looks and kind is not None and kind.weights else "score"
