"""What a job will take, said before it starts: time, memory and disk.

Time is that of a few steps, timed on one block of the model (`samples.py`), times how often the stages
take them (`stages.py`); memory and disk are counted (`room.py`). Of stages that cannot be forecast
that is said. While the job runs, what its stages really take corrects the time (`schedule.py`).
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from compressor.config.amounts import size
from compressor.job.forecast.room import disk, memory
from compressor.job.forecast.samples import on_a_block
from compressor.job.forecast.stages import Load, stages, stages_of_weights
from compressor.job.schedule import Part, words
from compressor.model.stream import BlockStream


@dataclass(frozen=True)
class Forecast:
    """parts: the job's stages in order; memory: bytes of the host at most; stays, at_most: bytes of disk
    in the end, and meanwhile; limit: --max-memory.
    """

    parts: list[Part]
    memory: int
    stays: int
    at_most: int
    limit: float | None = None

    @property
    def told(self) -> dict:
        """As JSON has it."""
        seconds: dict[str, float] = defaultdict(int)
        for part in self.parts:
            seconds[part.stage] += part.seconds or 0
        unknown = {part.stage for part in self.parts if part.seconds is None}
        return {
            "seconds": {s: None if s in unknown else round(n, 1) for s, n in seconds.items()},
            "memory_bytes": self.memory,
            "disk_bytes": self.at_most,
            "result_bytes": self.stays,
        }

    def __str__(self) -> str:
        seconds = self.told["seconds"]
        known = {stage: n for stage, n in seconds.items() if n is not None}
        longest = sorted(known, key=known.get, reverse=True)
        each = ", ".join(f"{stage} {words(known[stage])}" for stage in longest if known[stage] >= 1)
        unknown = [stage for stage, n in seconds.items() if n is None]
        more = f" and what {', '.join(unknown)} takes" if unknown else ""
        return (
            f"about {words(sum(known.values()))}{more} ({each or 'nothing long'}); "
            f"{size(self.memory)} of memory; {size(self.at_most)} of disk, of which "
            f"{size(self.stays)} stay{self.beyond}"
        )

    @property
    def beyond(self) -> str:
        """What to say of a limit that cannot be kept."""
        if self.limit is None or self.limit >= self.memory:
            return ""
        return (
            f". --max-memory {self.limit:,.0f} is less than that, though activations lie in files: what "
            "else a block takes is needed at once"
        )


def forecast(load: Load, stream: BlockStream) -> Forecast:
    """Of any job. Takes a few seconds for a model whose blocks do.

    `DamagedError` for weights of the block that are not finite.
    """
    config, checkpoint = load.config, load.checkpoint
    parts_of = stages if config.cuts else stages_of_weights
    tokens = load.calibration or load.evaluation
    parts: list[Part] = []
    if tokens is not None:
        parts = on_a_block(stream, tokens, lambda bench: list(parts_of(load, bench)))
    room = disk(config, checkpoint, load.wanted)
    needed = memory(load, stream.dtype, isinstance(stream.place, Path))
    return Forecast(parts, needed, room.stays, room.at_most, config.runtime.max_memory)
