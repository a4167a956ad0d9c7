"""The plan of a cut that leaves the units of blocks as they are: by depth alone, or of the stream."""

from dataclasses import asdict

from compressor.config.target import Target
from compressor.model.source import Source
from compressor.planning.costs import Costs
from compressor.planning.plan import Plan


def plan_of_depth(source: Source, target: Target, seed: int) -> Plan:
    """All units of the blocks that are left."""
    costs, widths = Costs.of(source), source.block_units
    params = costs.size(widths, "params")
    blocks = 1 - (costs.total["params"] - params) / costs.prunable
    return plan_of_part(source, target, seed, params, costs.size(widths, "bytes"), blocks)


def plan_of_part(
    source: Source, target: Target, seed: int, parameters: int, size: int, blocks: float
) -> Plan:
    """All units of a part of a source: size in bytes, and which share of the blocks' weights it has."""
    plan = Plan.whole(source)
    share = parameters / source.whole.parameters
    plan.about |= {
        "asked": asdict(target),
        "keep_reached": share,
        "keep_blocks_reached": blocks,
        "budget_reached": share,
        "parameters": parameters,
        "bytes": size,
        "allocate": "none",
        "protect": [],
        "units": source.block_units,
        "scores": {"method": "none", "mode": None, "seed": seed},
        "align": None,
        "align_wider": None,
    }
    return plan
