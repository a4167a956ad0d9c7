"""What a job needs: texts, room for hidden states, results; and what a resumed one must not change."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from compressor.config.amounts import AUTO
from compressor.config.choices import ALLOCATIONS
from compressor.config.job import JobConfig
from compressor.config.layouts import ALL, UNIFORM
from compressor.config.options import options_of
from compressor.config.plan import PlanConfig
from compressor.config.score import ScoreConfig
from compressor.config.target import Target, target_name
from compressor.scoring.methods import METHODS, Method

if TYPE_CHECKING:  # they import torch, which takes seconds
    from compressor.model.source import Source
    from compressor.recovery.data import RecoveryData
    from compressor.text.tokens import TokenSet

FOLDING = 6  # states of a token: two paths, and what enters and leaves a block and its FFN
# What a resumed job may change.
FREE = {"max_memory", "work_dir", "resume", "overwrite"}


@dataclass(frozen=True)
class WantedResult:
    """One result of a job.

    widths: units of each group of every block, as a split that is equal in all blocks has them: others
    come out about as large.
    """

    name: str
    target: Target
    layout: str
    widths: list[dict[str, int]]


def results_of(config: JobConfig, layouts: Sequence[str]) -> list[tuple[str, Target, str]]:
    """Name, target and layout of every result: one a target, `--layout all` one a layout of each.

    layouts: those that the model has. The uniform one is left out where blocks are to differ.
    """
    layout, plan = config.write.layout, config.plan
    if layout != ALL:
        return [(target_name(target), target, layout) for target in plan.results]
    same = ALLOCATIONS[plan.allocate].alike and not plan.protect
    return [
        (f"{target_name(target)}-{layout}", target, layout)
        for target in plan.results
        for layout in layouts
        if same or layout != UNIFORM
    ]


def looks(score: ScoreConfig) -> bool:
    """Whether a method looks at activations."""
    method = METHODS[score.method]
    return bool(method.wants(method.check_mode(score.mode)))


def judged(config: JobConfig) -> bool:
    """Whether a part of the calibration text judges allocations, or how many blocks go."""
    plan = config.plan
    by_loss = plan.drop_blocks == AUTO or ALLOCATIONS[plan.allocate].measured
    return config.cuts and by_loss


def calibrates(config: JobConfig) -> bool:
    """Whether the method, the selection, the repair or the quantisation looks at activations."""
    if config.quantization.learns:
        return True
    if config.sparse is not None:
        return config.sparse.method != "magnitude"
    if not config.cuts:
        return False
    if config.plan.drop_blocks is not None or config.plan.keep_hidden is not None:
        return True
    chooses = config.score.needs_text or judged(config)
    return looks(config.score) or chooses or config.repair.kind != "none"


def kept_states(config: JobConfig, blocks: int) -> int:
    """How many hidden states of every calibration token are kept at once."""
    from compressor.measuring.probes import FORWARDS

    if config.sparse is not None:  # what enters and leaves a block, and should, on two paths
        return 5
    if not config.cuts:
        return 2
    # A backward keeps what enters every block; a forward what enters and leaves one; a repair's
    # two paths the streams before, within and after one.
    states = repair_states(config.repair.kind)
    if config.plan.drop_blocks is not None and config.plan.fold:
        states = max(states, FOLDING)
    if judged(config):
        states = max(states, 6)  # those, the streams within the block, and what enters o_proj
        if ALLOCATIONS[config.plan.allocate].probing:
            states += 2 * FORWARDS  # cuts pass half of the blocks, and all are kept
    if not config.plan.targets:  # nothing is scored
        return states
    return states if METHODS[config.score.method].observe is None else max(states, blocks + 3)


def repair_states(kind: str) -> int:
    """The same of a repair alone."""
    return 2 if kind == "none" else 6


def chosen_method(score: ScoreConfig) -> Method:
    """The method with what weighs its gradients; an option that does not apply is refused."""
    method = METHODS[score.method]
    return replace(method, grains=method.choose_grains(**score.grains))


def decisive(
    configs: Iterable, checkpoint: "Source", *tokens: "TokenSet | RecoveryData | None"
) -> dict[str, str]:
    """What decides a result, by the option's name: a resumed job must not change it.

    configs: those of its stages; tokens: what its texts gave.
    """
    decided: dict[str, str] = {}
    for config in configs:
        for each in options_of(config):
            if each.name not in FREE:
                decided[each.metadata["flag"]] = str(getattr(config, each.name))
        if isinstance(config, PlanConfig):
            decided |= decisive_targets(config)
    decided["the source's fingerprint"] = checkpoint.fingerprint
    decided["the SHA-256 of its texts"] = str([t and hashes(t.protocol) for t in tokens])
    return decided


def decisive_targets(plan: PlanConfig) -> dict[str, str]:
    from compressor.planning.budget import identity

    return {
        "--budget": " ".join(sorted({identity(t.budget) for t in plan.targets})),
        "the targets": " ".join(target_name(t) for t in plan.targets),
    }


def hashes(protocol: dict) -> str:
    """The SHA-256 of a text, and that of the one it was mixed with."""
    return " ".join(p["sha256"] for p in (protocol, protocol.get("also")) if p)
