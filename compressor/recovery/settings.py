"""What recovery was asked for."""

from dataclasses import dataclass

from compressor.errors import InputError

METHODS = ("none", "lora", "distill")


@dataclass(frozen=True)
class Recovery:
    """The options of recovery, as the command line documents them.

    A step takes `batch` sequences, `batch / accumulate` of them at a time in memory. The learning
    rate rises linearly over the share `warmup` of the steps and falls to zero along a cosine.
    `distill_weight` is the share of the divergence from the source in the loss of `distill`, the
    rest being the ordinary cross-entropy; of the source's distribution the `teacher_top` likeliest
    tokens are kept.
    """

    method: str = "none"
    steps: int = 200
    data: str | None = None
    data_range: str | None = None
    batch: int = 16
    accumulate: int = 4
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    distill_weight: float = 1.0
    teacher_top: int = 64
    save_every: int = 50

    def check(self) -> None:
        """Refuse what cannot be trained, by the name of the option."""
        if self.method not in METHODS:
            raise InputError(f"--recover is {', '.join(METHODS)}, not {self.method!r}.")
        counts = {
            "--recover-steps": self.steps,
            "--recover-batch": self.batch,
            "--recover-accumulate": self.accumulate,
            "--recover-save-every": self.save_every,
            "--lora-rank": self.rank,
            "--teacher-top": self.teacher_top,
        }
        for option, value in counts.items():
            if value < 1:
                raise InputError(f"{option} must be at least 1, not {value}.")
        if self.batch % self.accumulate:
            raise InputError(
                f"--recover-batch {self.batch} cannot be divided into --recover-accumulate "
                f"{self.accumulate} equal parts."
            )
        positive = {
            "--learning-rate": self.learning_rate,
            "--lora-alpha": self.alpha,
            "--clip-norm": self.clip_norm,
        }
        for option, value in positive.items():
            if not 0 < value < float("inf"):
                raise InputError(f"{option} must be a positive number, not {value:g}.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"--lora-dropout lies from 0 to below 1, not {self.dropout:g}.")
        if not 0 <= self.distill_weight <= 1:
            raise InputError(f"--distill-weight lies from 0 to 1, not {self.distill_weight:g}.")
        if not 0 <= self.warmup < 1:
            raise InputError(f"--recover-warmup lies from 0 to below 1, not {self.warmup:g}.")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"--weight-decay must not be negative, but is {self.weight_decay:g}.")
