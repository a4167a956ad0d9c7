"""Which texts a job reads, and how much of them."""

from dataclasses import dataclass

from compressor.config.options import at_least, option

RANGE = "Its documents or windows A:B."
OWN = "own"  # the name of the text that the model writes itself
PROSE = (
    "stdlib-prose"  # what every Python says of itself: calibrated on where that one cannot be had
)


@dataclass(frozen=True)
class TextConfig:
    """A text is a file, one of Python's, a data set of the hub (`text/texts.py`), or the model's own."""

    calibration: str | None = option(
        None,
        "--calibration",
        "Text to score, repair and train on: .txt, .json, .jsonl, own (which the model writes first), "
        "stdlib (code), stdlib-prose, or a hub name; TEXT[A:B] takes its documents or windows A to B.",
    )
    calibration_range: str | None = option(None, "calibration_range", RANGE)
    calibration_also: str | None = option(
        None,
        "calibration_also",
        "A second text, as many tokens of it, such as own.",
    )
    calibration_also_range: str | None = option(None, "calibration_also_range", RANGE)
    evaluation: str | None = option(
        None,
        "--evaluation",
        "Text to measure results on (TEXT or TEXT[A:B]), or none; by default the end of the calibration "
        "text, which then calibrates nothing.",
    )
    evaluation_range: str | None = option(None, "evaluation_range", RANGE)
    samples: int | None = option(
        None,
        "--samples",
        "How many sequences to calibrate on; by default as many as come to 65,536 tokens.",
        at_least(1),
    )
    calibration_tokens: int = option(
        65_536, "calibration_tokens", "So many tokens, without --samples.", at_least(1)
    )
    length: int = option(512, "--length", "Tokens of a sequence, at most.", at_least(2))

    @property
    def named(self) -> str:
        """The text to calibrate on: prose, if none is asked for or chosen (`job/own_text.py`)."""
        return self.calibration or PROSE
