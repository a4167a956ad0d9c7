"""How long a job still takes: what was forecast of its parts, corrected by what they really take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TRUST = 0.1  # of a forecast's weight beside what is measured


@dataclass(frozen=True)
class Part:
    """One stage of a job, of one result if it has such (`of`); seconds None where nobody knows.

    more: how many of them the last of its steps takes beyond what the others do.
    """

    stage: str
    seconds: float | None
    of: str = ""
    more: float = 0.0


class Schedule:
    """The parts of a job in their order, and where in them it is.

    `begin` and `end` a stage, and `advance` it meanwhile. Parts before the one that begins are done
    with (a resumed job passes over them); a stage that was not foreseen is one of unknown length.
    """

    def __init__(self, parts: Sequence[Part] = (), clock: Callable[[], float] = time.monotonic):
        self.clock, self.ahead = clock, list(parts)
        self.whole = sum(part.seconds or 0 for part in parts)
        self.foreseen = self.taken = 0.0  # seconds of the stages that are over
        self.now: _Stage | None = None

    @property
    def slowness(self) -> float:
        """What forecasts have to be multiplied by, to judge from the stages that are over."""
        trust = TRUST * self.whole or 1.0
        return (self.taken + trust) / (self.foreseen + trust)

    def begin(self, stage: str, of: str = "", kept: int = 0) -> None:
        """kept: how many of its steps are known from an interrupted job."""
        places = [i for i, p in enumerate(self.ahead) if (p.stage, p.of) == (stage, of)]
        part = Part(stage, None, of)
        if places:
            part = self.ahead[places[0]]
            del self.ahead[: places[0] + 1]
        self.now = _Stage(part.seconds, kept, self.clock(), part.more)

    def advance(self, done: int, total: int) -> None:
        if self.now:
            self.now.advance(done, total, self.clock())

    def end(self) -> None:
        stage, self.now = self.now, None
        if stage and stage.seconds is not None and not stage.kept:
            self.foreseen += stage.seconds
            self.taken += self.clock() - stage.begun

    @property
    def unknown(self) -> list[str]:
        """The stages ahead that nobody knows the length of."""
        return list(dict.fromkeys(p.stage for p in self.ahead if p.seconds is None))

    @property
    def left(self) -> float | None:
        """Seconds, without those of `unknown` stages; None where that of the present one is unknown."""
        here = self.now.left(self.slowness, self.clock()) if self.now else 0.0
        if here is None:
            return None
        return here + sum(p.seconds or 0 for p in self.ahead) * self.slowness


class _Stage:
    """The stage that goes on: so many of its steps are done, the last of them at a time."""

    def __init__(self, seconds: float | None, kept: int, begun: float, more: float = 0.0):
        self.seconds, self.kept, self.begun, self.more = seconds, kept, begun, more
        self.done = self.total = 0
        self.since = self.last = begun  # when the first new step began, and the last one ended

    def advance(self, done: int, total: int, now: float) -> None:
        self.done, self.total, self.last = done, total, now
        if done <= self.kept:
            self.since = now

    def left(self, slowness: float, now: float) -> float | None:
        foreseen = None if self.seconds is None else self.seconds * slowness
        if not self.total:
            return None if foreseen is None else max(0.0, foreseen - (now - self.begun))
        more = self.more * slowness if self.done < self.total else 0.0
        step = self.step(None if foreseen is None else foreseen - more)
        if step is None:
            return None
        steps = self.total - self.done
        # A step that takes longer than it should ends at any moment.
        over = max(0, steps - 1) * step + (more if steps > 1 else 0.0)
        return max(steps * step + more - (now - self.last), over)

    def step(self, foreseen: float | None) -> float | None:
        """Seconds of a step: measured, and as far as few were measured forecast."""
        new = max(0, self.done - self.kept)
        measured = self.last - self.since
        if foreseen is None:
            return measured / new if new else None
        weight = max(1.0, TRUST * self.total)
        return (weight * foreseen / self.total + measured) / (weight + new)


def words(seconds: float) -> str:
    """`40 s`, `9 min`, `2 h 10 min`."""
    if round(seconds) < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"
