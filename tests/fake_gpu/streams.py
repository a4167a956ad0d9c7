"""Streams and events of a fake device: who may read what, and copies that come late.

A tensor belongs to the stream that wrote it. Another one may read it once it waits for an event that was
recorded after the writing; and has to be recorded with the tensor, as its memory may be given away by
then. A copy out of pinned memory without waiting is made as late as CUDA may make it, when somebody
waits for its stream: whoever overwrites the memory before has copied the wrong numbers.
"""

import threading
from collections.abc import Callable

LOCAL = threading.local()


class Stream:
    """In order of what it is given; `seen[other]` is up to where it has waited for another."""

    def __init__(self, device=None, priority: int = 0):
        self.ticks = 0
        self.seen: dict[Stream, int] = {}
        self.pending: list[Callable[[], None]] = []
        self.cuda_stream = id(self)
        self.lock = threading.RLock()

    def now(self) -> tuple["Stream", int]:
        self.ticks += 1
        return self, self.ticks

    def later(self, work: Callable[[], None]) -> None:
        self.pending.append(work)

    def finish(self) -> None:
        """What was put off is done, also where another thread is about it."""
        with self.lock:
            while self.pending:
                self.pending.pop(0)()

    def reads(self, tensors: list) -> None:
        """RuntimeError if one of them may not be written yet, or may be gone."""
        self.finish()
        for tensor in tensors:
            stream, tick = tensor.born
            if stream is self:
                continue
            if self.seen.get(stream, 0) < tick:
                raise RuntimeError(
                    f"{tensor!r} is read before the stream that writes it was waited for."
                )
            if self not in getattr(tensor, "recorded", ()):
                raise RuntimeError(
                    f"{tensor!r} is read by a stream that record_stream was not told of."
                )

    def wait_event(self, event: "Event") -> None:
        stream, tick = event.recorded
        stream.finish()
        self.seen[stream] = max(self.seen.get(stream, 0), tick)

    def wait_stream(self, other: "Stream") -> None:
        self.wait_event(Event().record(other))

    def record_event(self, event: "Event | None" = None) -> "Event":
        return (event or Event()).record(self)

    def synchronize(self) -> None:
        self.finish()


class Event:
    """A place in a stream."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False):
        self.recorded: tuple[Stream, int] | None = None

    def record(self, stream: Stream | None = None) -> "Event":
        self.recorded = (stream or current_stream()).now()
        return self

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).wait_event(self)

    def synchronize(self) -> None:
        if self.recorded:
            self.recorded[0].finish()

    def query(self) -> bool:
        return not self.recorded or not self.recorded[0].pending


DEFAULT = Stream()


def current_stream(device=None) -> Stream:
    """Of this thread."""
    return getattr(LOCAL, "stream", DEFAULT)


class using:
    """`with torch.cuda.stream(stream)`."""

    def __init__(self, stream: Stream | None):
        self.stream = stream

    def __enter__(self):
        self.former = current_stream()
        LOCAL.stream = self.stream or self.former

    def __exit__(self, *_):
        LOCAL.stream = self.former
