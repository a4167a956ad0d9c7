"""What recovery was asked for."""

from dataclasses import dataclass, fields, replace

from compressor.config.options import Fits, check_value, one_of, option
from compressor.errors import InputError

COUNT: Fits = ("at least 1", lambda x: x >= 1)
POSITIVE: Fits = ("positive", lambda x: 0 < x < float("inf"))
SHARE: Fits = ("from 0 to 1", lambda x: 0 <= x <= 1)
BELOW_ONE: Fits = ("from 0 to below 1", lambda x: 0 <= x < 1)
NOT_NEGATIVE: Fits = ("not negative", lambda x: 0 <= x < float("inf"))
METHODS = one_of("none", "lora", "distill")


@dataclass(frozen=True)
class Recovery:
    """The options of recovery, with their names and help on the command line.

    Rank, alpha and dropout are LLM-Pruner's (github.com/horseee/LLM-Pruner, post_training.py).
    """

    method: str = option("none", "--recover", "Train what is left: none, lora or distill.", METHODS)
    steps: int = option(200, "--recover-steps", "Optimiser steps.", COUNT)
    data: str | None = option(
        None,
        "--recover-data",
        "Text to train on, or JSON(L) rows of instructions; else the calibration's.",
    )
    data_range: str | None = option(
        None, "--recover-range", "Its documents, windows or rows A:B; else the calibration's range."
    )
    batch: int = option(8, "--recover-batch", "Sequences a step.", COUNT)
    accumulate: int = option(
        2, "--recover-accumulate", "Parts a step is computed in, one after the other.", COUNT
    )
    learning_rate: float | None = option(
        None, "--learning-rate", "At its highest; else one that suits the model's width.", POSITIVE
    )
    warmup: float = option(
        0.1, "--recover-warmup", "Share of the steps in which the rate rises.", BELOW_ONE
    )
    weight_decay: float = option(0.0, "--weight-decay", "AdamW's.", NOT_NEGATIVE)
    clip_norm: float = option(1.0, "--clip-norm", "Largest norm of a gradient.", POSITIVE)
    rank: int = option(8, "--lora-rank", "Rank of the adapters.", COUNT)
    alpha: float = option(16.0, "--lora-alpha", "Adapters count alpha / rank times.", POSITIVE)
    dropout: float = option(0.05, "--lora-dropout", "Of what adapters see.", BELOW_ONE)
    distill_weight: float = option(
        1.0,
        "--distill-weight",
        "Share of the divergence from SOURCE in distill's loss; the rest is cross-entropy.",
        SHARE,
    )
    teacher_top: int = option(
        64, "--teacher-top", "Likeliest tokens of SOURCE that distill learns from.", COUNT
    )
    save_every: int = option(50, "--recover-save-every", "Steps between saved states.", COUNT)

    def of_width(self, hidden_size: int) -> "Recovery":
        """These settings with the learning rate that a model so wide is trained at."""
        return replace(self, learning_rate=self.learning_rate or usual_rate(hidden_size))

    def check(self) -> None:
        """Refuse what cannot be trained, by the name of the option."""
        for each in fields(self):
            check_value(each, getattr(self, each.name))
        if self.batch % self.accumulate:
            raise InputError(
                f"--recover-batch {self.batch} cannot be divided into --recover-accumulate "
                f"{self.accumulate} equal parts."
            )


def usual_rate(hidden_size: int) -> float:
    """1e-4 at a width of 4096, as LLM-Pruner trains at, and more for narrower models: 2e-3 at 64 and
    1e-3 at 128 were near the best of those tried; the power between them is ours.
    """
    return 1e-4 * (4096 / hidden_size) ** 0.75
