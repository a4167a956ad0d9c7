"""What a job measures its results by: perplexity before and after, and the distance from the source."""

from pathlib import Path

from compressor.config.runtime import Runtime
from compressor.evaluation.reference import Reference
from compressor.job.opening import open_stream
from compressor.job.run import Run
from compressor.model.stream import BlockStream
from compressor.quantization.reading import open_model
from compressor.text.tokens import TokenSet

STATES = 2  # of every token, that enter and leave a block


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
            with self.run.stage("evaluate") as progress:
                measurement = self.reference.measured(progress)
            self.run.journal.put("before", measurement)
        return measurement

    def after(self, folder: Path) -> dict | None:
        """What the checkpoint in a folder makes of it (`Reference.compared`)."""
        if self.reference is None:
            return None
        with self.run.stage("evaluate") as progress:
            model = open_model(folder)
            stream = open_stream(self.runtime, model, self.run.work, STATES, self.tokens)
            return self.reference.compared(stream, progress)
