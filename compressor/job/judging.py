"""What a job measures its results by: perplexity before and after, and the distance from the source."""

from pathlib import Path

from compressor.evaluation.reference import Reference
from compressor.job.opening import open_stream
from compressor.model.stream import BlockStream
from compressor.quantization.reading import open_model
from compressor.text.tokens import TokenSet


class Judge:
    """The source of a job (what `stream` runs) on the evaluation text; all None without such a text."""

    def __init__(
        self, settings, stream: BlockStream, tokens: TokenSet | None, work: Path, meter, lines
    ):
        self.settings, self.work, self.meter, self.lines = settings, work, meter, lines
        self.tokens = tokens
        self.reference = tokens and Reference(stream, tokens)

    def before(self, journal=None) -> dict | None:
        """What the source makes of the text (`Reference.measured`); from the journal, if it is there."""
        if self.reference is None:
            return None
        if (found := journal and journal.get("before")) is None:
            with self.meter.stage("evaluate"), self.lines.stage("evaluate") as progress:
                found = self.reference.measured(progress)
            if journal is not None:
                journal.put("before", found)
        return found

    def after(self, folder: Path) -> dict | None:
        """What the checkpoint in a folder makes of it (`Reference.compared`)."""
        if self.reference is None:
            return None
        with self.meter.stage("evaluate"), self.lines.stage("evaluate") as progress:
            stream = open_stream(self.settings, open_model(folder), self.work, self.tokens)
            return self.reference.compared(stream, progress)


def said_of(measured: dict | None) -> dict:
    """What a result says of its measurement (`Judge.after`); None where there is none."""
    measured = measured or {}
    found = {"perplexity_after": measured.get("perplexity")}
    return found | {name: measured.get(name) for name in ("kl", "agreement")}
