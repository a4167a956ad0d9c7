"""The plan of a cut by depth alone."""

from dataclasses import asdict

from compressor.config.target import Target
from compressor.model.source import Source
from compressor.planning.costs import Costs
from compressor.planning.plan import Plan


def plan_of_depth(source: Source, target: Target, seed: int) -> Plan:
    """All units of the blocks that are left."""
    plan, costs = Plan.whole(source), Costs.of(source)
    params = costs.size(plan.widths(), "params")
    share = params / costs.total["params"]
    plan.about |= {
        "asked": asdict(target),
        "keep_reached": share,
        "keep_blocks_reached": 1 - (costs.total["params"] - params) / costs.prunable,
        "budget_reached": share,
        "parameters": params,
        "bytes": costs.size(plan.widths(), "bytes"),
        "allocate": "none",
        "protect": [],
        "units": source.block_units,
        "scores": {"method": "none", "mode": None, "seed": seed},
        "align": None,
        "align_wider": None,
    }
    return plan
