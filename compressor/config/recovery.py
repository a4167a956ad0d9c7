"""What recovery was asked for."""

from dataclasses import Field, dataclass, replace
from pathlib import Path
from typing import Any

from compressor.config.json_files import check_file
from compressor.config.options import (
    Fits,
    at_least,
    check_values,
    kind_of,
    name_of,
    one_of,
    option,
    options_of,
)
from compressor.errors import InputError

COUNT = at_least(1)
POSITIVE: Fits = ("positive", lambda x: 0 < x < float("inf"))
SHARE: Fits = ("from 0 to 1", lambda x: 0 <= x <= 1)
BELOW_ONE: Fits = ("from 0 to below 1", lambda x: 0 <= x < 1)
NOT_NEGATIVE: Fits = ("not negative", lambda x: 0 <= x < float("inf"))
MOST_BYTES = 8 << 10  # of a file with a line for each of a dozen numbers
MOST_BRACKETS = 100  # YAML takes the square of their number
COMPACT = ("method", "steps")  # what --recover METHOD:STEPS says


@dataclass(frozen=True)
class RecoveryConfig:
    """The options of recovery, with their names and help on the command line.

    Rank, alpha and dropout are LLM-Pruner's (github.com/horseee/LLM-Pruner, post_training.py).
    """

    method: str = option(
        "none",
        "--recover",
        "Train what is left: none, lora or distill; lora:500 takes 500 steps (default 200).",
        one_of("none", "lora", "distill"),
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

    def of_width(self, hidden_size: int) -> "RecoveryConfig":
        """These settings with the learning rate that a model so wide is trained at."""
        return replace(self, learning_rate=self.learning_rate or usual_rate(hidden_size))

    def check(self) -> None:
        """Refuse what cannot be trained, by the name of the option."""
        check_values(self)
        if self.batch % self.accumulate:
            raise InputError(
                f"recover_batch {self.batch} cannot be divided into recover_accumulate "
                f"{self.accumulate} equal parts."
            )


def read_details(file: Path) -> dict[str, object]:
    """Options of recovery from a YAML file, by their names in Python; in the file they have those of
    `RecoveryConfig`: `rank: 16`. InputError, by the file's name, for what is none of them.
    """
    import yaml

    try:
        check_file(file, MOST_BYTES)
        text = file.read_text(encoding="utf-8")
        if text.count("[") + text.count("{") > MOST_BRACKETS:
            raise ValueError("it is nested too deeply")
        details = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--recover-config {file} cannot be read: {reason}.") from error
    known = {n.name: n for n in options_of(RecoveryConfig) if n.name not in COMPACT}
    details = {} if details is None else details
    if not isinstance(details, dict) or not {*details} <= {*known}:
        # Not as it stands there: aliases and numbers without end can be longer than any memory.
        wrong = f"is a {type(details).__name__}"
        if isinstance(details, dict):
            names = [key for key in details if key not in known]
            wrong = f"has {sorted(n if isinstance(n, str) else type(n).__name__ for n in names)}"
        raise InputError(
            f"--recover-config {file} is not a list of {', '.join(known)}, a line each, such as "
            f"rank: 16, but {wrong}."
        )
    return {name_of(known[n]): typed(known[n], value, file) for n, value in details.items()}


def typed(described: Field, value: Any, file: Path) -> object:
    """A value as the option has it: YAML reads 1e-4 as a text, and 1 as a whole number."""
    kind = kind_of(described)
    shown = repr(value) if isinstance(value, str | float | bool) else type(value).__name__
    try:
        if not isinstance(value, str | int | float | None) or isinstance(value, bool):
            raise ValueError
        if value is not None and kind is int and int(value) != float(value):
            raise ValueError
        return None if value is None else kind(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"{described.name} in --recover-config {file} is {shown}, and must be a number."
        ) from None


def usual_rate(hidden_size: int) -> float:
    """1e-4 at a width of 4096, as LLM-Pruner trains at, and more for narrower models: 2e-3 at 64 and
    1e-3 at 128 were near the best of those tried; the power between them is ours.
    """
    return 1e-4 * (4096 / hidden_size) ** 0.75
