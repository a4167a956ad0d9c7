"""What recovery was asked for."""

from dataclasses import dataclass, replace
from pathlib import Path

from compressor.config.options import (
    Fits,
    at_least,
    check_values,
    given_options,
    name_of,
    one_of,
    option,
    options_of,
)
from compressor.config.yaml_files import named, read_yaml, typed
from compressor.errors import InputError

COUNT = at_least(1)
POSITIVE: Fits = ("positive", lambda x: 0 < x < float("inf"))
SHARE: Fits = ("from 0 to 1", lambda x: 0 <= x <= 1)
BELOW_ONE: Fits = ("from 0 to below 1", lambda x: 0 <= x < 1)
NOT_NEGATIVE: Fits = ("not negative", lambda x: 0 <= x < float("inf"))
COMPACT = ("method", "steps")  # what --recover METHOD:STEPS says
OF_ADAPTERS = ("rank", "alpha", "dropout")
# Of the adapters' rate, what weights are trained at: better than all of it, and than a tenth, after 30
# steps on the bundled model without a fifth of it.
OF_WEIGHTS = 0.3


@dataclass(frozen=True)
class RecoveryConfig:
    """The options of recovery, with their names and help on the command line.

    Rank, alpha and dropout are LLM-Pruner's (github.com/horseee/LLM-Pruner, post_training.py).
    """

    method: str = option(
        "none",
        "--recover",
        "Train what is left: none, lora or distill, or all its weights: full or full-distill; lora:500 "
        "takes 500 steps (default 200).",
        one_of("none", "lora", "distill", "full", "full-distill"),
    )
    steps: int = option(200, "recover_steps", "Optimiser steps.", COUNT)
    data: str | None = option(
        None,
        "recover_data",
        "Text to train on, or JSON(L) rows of instructions; else the calibration's.",
    )
    data_range: str | None = option(
        None, "recover_range", "Its documents, windows or rows A:B; else the calibration's range."
    )
    batch: int = option(8, "recover_batch", "Sequences a step.", COUNT)
    accumulate: int = option(
        2, "recover_accumulate", "Parts that a step is computed in, to need less memory.", COUNT
    )
    learning_rate: float | None = option(
        None,
        "learning_rate",
        "Highest learning rate; by default one that suits the model's width.",
        POSITIVE,
    )
    warmup: float = option(
        0.1, "recover_warmup", "Share of the steps in which the learning rate rises.", BELOW_ONE
    )
    weight_decay: float = option(0.0, "weight_decay", "Weight decay of AdamW.", NOT_NEGATIVE)
    clip_norm: float = option(1.0, "clip_norm", "Largest norm of a gradient.", POSITIVE)
    rank: int = option(8, "lora_rank", "Rank of the adapters.", COUNT)
    alpha: float = option(16.0, "lora_alpha", "Scale of the adapters, times the rank.", POSITIVE)
    dropout: float = option(0.05, "lora_dropout", "Dropout of the adapters' inputs.", BELOW_ONE)
    distill_weight: float = option(
        1.0,
        "distill_weight",
        "Share of the divergence from SOURCE in distill's loss; the rest is cross-entropy.",
        SHARE,
    )
    teacher_top: int = option(
        64, "teacher_top", "Likeliest tokens of SOURCE that distill learns from.", COUNT
    )
    save_every: int = option(50, "recover_save_every", "Steps between saved states.", COUNT)

    @property
    def adapts(self) -> bool:
        """Whether adapters are trained, and not the weights themselves."""
        return not self.method.startswith("full")

    @property
    def taught(self) -> bool:
        """Whether the loss is the divergence from the source."""
        return self.method.endswith("distill")

    def of_width(self, hidden_size: int) -> "RecoveryConfig":
        """These settings with the learning rate that a model so wide is trained at."""
        usual = usual_rate(hidden_size) * (1 if self.adapts else OF_WEIGHTS)
        return replace(self, learning_rate=self.learning_rate or usual)

    def check(self) -> None:
        """Refuse what cannot be trained, by the name of the option."""
        check_values(self)
        if self.batch % self.accumulate:
            raise InputError(
                f"recover_batch {self.batch} cannot be divided into recover_accumulate "
                f"{self.accumulate} equal parts."
            )
        for flag in () if self.adapts else given_options(self):
            if flag in [name_of(each) for each in options_of(self) if each.name in OF_ADAPTERS]:
                raise InputError(
                    f"{flag} is of adapters, and --recover {self.method} trains the weights themselves; "
                    "leave it out, or give lora or distill."
                )


def read_details(file: Path) -> dict[str, object]:
    """Options of recovery from a YAML file, by their names in Python; in the file they have those of
    `RecoveryConfig`: `rank: 16`. InputError, by the file's name, for what is none of them.
    """
    called = f"--recover-config {file}"
    details = read_yaml(file, called)
    known = {n.name: n for n in options_of(RecoveryConfig) if n.name not in COMPACT}
    details = {} if details is None else details
    if not isinstance(details, dict) or not {*details} <= {*known}:
        wrong = f"is a {type(details).__name__}"
        if isinstance(details, dict):
            wrong = f"has {named([key for key in details if key not in known])}"
        raise InputError(
            f"{called} is not a list of {', '.join(known)}, a line each, such as "
            f"rank: 16, but {wrong}."
        )
    return {name_of(known[n]): typed(known[n], value, called) for n, value in details.items()}


def usual_rate(hidden_size: int) -> float:
    """1e-4 at a width of 4096, as LLM-Pruner trains at, and more for narrower models: 2e-3 at 64 and
    1e-3 at 128 were near the best of those tried; the power between them is ours.
    """
    return 1e-4 * (4096 / hidden_size) ** 0.75
