"""Checkpoints of blocks of different widths."""

from compressor.job.result import make_record
from compressor.model.checkpoint import Checkpoint
from compressor.planning.plan import Plan
from compressor.writing.cuts import write
from compressor.writing.record import write_record

# Of 4 KV groups and 48 channels; in the second no block has all of either.
WIDTHS = {
    "0.7": [([0, 2, 3], range(20)), ([0, 1, 2, 3], range(3, 35)), ([1], range(48))],
    "0.5": [([2], range(8, 24)), ([0, 1, 3], range(4)), ([0, 3], range(40))],
}


def plan_of(name: str) -> Plan:
    blocks = [{"attention": a, "ffn": [*f]} for a, f in WIDTHS[name]]
    return Plan(blocks, {"scores": {}})


def written(source, folder, plan=None, layout="per-layer"):
    checkpoint, plan = Checkpoint(source), plan or plan_of("0.7")
    chosen = write(checkpoint, plan, folder, layout)
    write_record(folder, make_record(checkpoint, plan, layout, chosen))
    return folder
