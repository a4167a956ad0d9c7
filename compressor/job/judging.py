"""What a job measures its results by: perplexity before and after, and the distance from the source."""

from collections.abc import Callable
from pathlib import Path

from compressor.config.runtime import Runtime
from compressor.evaluation.reference import Reference
from compressor.job.micro_batches import EVALUATED, fitting
from compressor.job.opening import open_stream
from compressor.job.run import Progress, Run
from compressor.model.stream import BlockStream
from compressor.quantization.reading import open_model
from compressor.text.tokens import TokenSet

STATES = 2  # of every token, that enter and leave a block
# Nats a token. Of models and texts that suit each other it is 0.7 at most, of others 1.5 at least.
FAR = 1.2


class Judge:
    """The source of a job (what `stream` runs) on the evaluation text; all None without such a text."""

    def __init__(self, run: Run, runtime: Runtime, stream: BlockStream, tokens: TokenSet | None):
        self.run, self.runtime, self.tokens = run, runtime, tokens
        self.reference = Reference(stream, tokens) if tokens else None

    def before(self) -> dict | None:
        """What the source makes of the text (`Reference.measured`); from the journal, if it is there."""
        if self.reference is None:
            return None
        if (measurement := self.run.journal.get("before")) is None:
            measurement = self.measured(self.reference.measured)
            self.run.journal.put("before", measurement)
            for note in self.notes:
                self.run.lines.fact("text", note)
        return measurement

    @property
    def notes(self) -> list[str]:
        """What `before` says of the text, once it was measured."""
        return far_notes(self.run.journal.get("before"))

    def after(self, folder: Path) -> dict | None:
        """What the checkpoint in a folder makes of it (`Reference.compared`)."""
        if self.reference is None:
            return None
        model = open_model(folder)

        def compared(progress: Progress) -> dict:
            stream = open_stream(self.runtime, model, self.run.work, STATES, self.tokens)
            return self.reference.compared(stream, progress)

        return self.measured(compared)

    def measured(self, measure: Callable[[Progress], dict]) -> dict:
        """What comes of a measurement, of fewer tokens at once where memory runs out."""

        def work() -> dict:
            with self.run.stage("evaluate") as progress:
                return measure(progress)

        return fitting(self.run, self.reference, self.tokens, None, work, entry=EVALUATED)


def far_notes(before: dict | None) -> list[str]:
    """A sentence where the source loses more on the text than it would on its own, by `FAR`."""
    if before is None or not before["nll"] > before["expected"] + FAR:
        return []
    return [
        f"The text {before['protocol']['source']!r} is far from what the model has learned: it loses "
        f"{before['nll']:.2f} nats a token there, and on text of its own would lose "
        f"{before['expected']:.2f}. Calibrate on a text like those it is for (--calibration TEXT)."
    ]
