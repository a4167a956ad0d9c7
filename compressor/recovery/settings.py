"""What recovery was asked for."""

from dataclasses import dataclass, replace

from compressor.errors import InputError

METHODS = ("none", "lora", "distill")


@dataclass(frozen=True)
class Recovery:
    """The options of recovery, as the command line documents them.

    A step takes `batch` sequences, `batch / accumulate` of them at a time in memory. The learning
    rate rises linearly over the share `warmup` of the steps and falls to zero along a cosine; None
    stands for `usual_rate` of the model's width. `distill_weight` is the share of the divergence from
    the source in the loss of `distill`, the rest being the ordinary cross-entropy; of the source's
    distribution the `teacher_top` likeliest tokens are kept.

    Rank, alpha and dropout are LLM-Pruner's (github.com/horseee/LLM-Pruner, post_training.py).
    """

    method: str = "none"
    steps: int = 200
    data: str | None = None
    data_range: str | None = None
    batch: int = 16
    accumulate: int = 4
    learning_rate: float | None = None
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    distill_weight: float = 1.0
    teacher_top: int = 64
    save_every: int = 50

    def of_width(self, hidden_size: int) -> "Recovery":
        """These settings with the learning rate that a model so wide is trained at."""
        return replace(self, learning_rate=self.learning_rate or usual_rate(hidden_size))

    def check(self) -> None:
        """Refuse what cannot be trained, by the name of the option."""
        if self.method not in METHODS:
            raise InputError(f"--recover is {', '.join(METHODS)}, not {self.method!r}.")
        below_one = "from 0 to below 1"
        for option, value, fits, wanted in (
            ("--recover-steps", self.steps, self.steps >= 1, "at least 1"),
            ("--recover-batch", self.batch, self.batch >= 1, "at least 1"),
            ("--recover-accumulate", self.accumulate, self.accumulate >= 1, "at least 1"),
            ("--recover-save-every", self.save_every, self.save_every >= 1, "at least 1"),
            ("--recover-warmup", self.warmup, 0 <= self.warmup < 1, below_one),
            ("--learning-rate", self.learning_rate or 0, positive(self.learning_rate), "positive"),
            ("--weight-decay", self.weight_decay, self.weight_decay >= 0, "not negative"),
            ("--clip-norm", self.clip_norm, positive(self.clip_norm), "positive"),
            ("--lora-rank", self.rank, self.rank >= 1, "at least 1"),
            ("--lora-alpha", self.alpha, positive(self.alpha), "positive"),
            ("--lora-dropout", self.dropout, 0 <= self.dropout < 1, below_one),
            ("--distill-weight", self.distill_weight, 0 <= self.distill_weight <= 1, "from 0 to 1"),
            ("--teacher-top", self.teacher_top, self.teacher_top >= 1, "at least 1"),
        ):
            if not fits:
                raise InputError(f"{option} must be {wanted}, not {value:g}.")
        if self.batch % self.accumulate:
            raise InputError(
                f"--recover-batch {self.batch} cannot be divided into --recover-accumulate "
                f"{self.accumulate} equal parts."
            )


def positive(value: float | None) -> bool:
    return value is None or 0 < value < float("inf")


def usual_rate(hidden_size: int) -> float:
    """1e-4 at a width of 4096, as LLM-Pruner trains at, and more for narrower models: 2e-3 at 64 and
    1e-3 at 128 were near the best of those tried; the power between them is ours.
    """
    return 1e-4 * (4096 / hidden_size) ** 0.75
