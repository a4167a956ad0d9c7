"""compression.json: what a result keeps of how it was made."""

from pathlib import Path

from compressor import __version__
from compressor.config.hub_names import called, origin
from compressor.model.digest import digest
from compressor.model.fewer_channels import FewerChannels
from compressor.model.source import Source
from compressor.planning.plan import Plan
from compressor.repairing.folding import fold_record
from compressor.repairing.streaming import Repair
from compressor.writing.record import versions


def make_record(
    source: Source, plan: Plan, layout: str, container: str, repair: Repair | None = None
) -> dict:
    """What compression.json holds of every cut."""
    repaired = repair.about if repair else None
    folded = {"folded": fold_record(source, plan, repaired)} if source.dropped else {}
    hidden = {"hidden": hidden_record(source)} if isinstance(source, FewerChannels) else {}
    return base_record(source) | {
        "plan": {"blocks": plan.blocks, "about": plan.about},
        "repair": repaired,
        **folded,
        **hidden,
        "layout": layout,
        "container": container,
    }


def hidden_record(source: FewerChannels) -> dict:
    """What of the tensors outside the blocks is no longer the source's, and their digest."""
    names = sorted({*source.outer, *source.rescaled})
    return {"tensors": names, "sha256": digest(source.read(names))}


def base_record(source: Source) -> dict:
    """Where a result comes from, and what it was made with."""
    known = origin(Path(source.label))
    commit = {"commit": known[1]} if known else {}
    return {
        "format": 1,
        "compressor": __version__,
        "source": {"name": called(source.label), "fingerprint": source.fingerprint, **commit},
        "versions": versions(),
    }
