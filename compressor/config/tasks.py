"""What a model is asked: tasks of lm-eval, how much of them, and which other model answers too."""

from dataclasses import dataclass
from pathlib import Path

from compressor.errors import InputError


@dataclass(frozen=True)
class TaskConfig:
    """names: lm-eval's. files: a folder with their questions, where the hub is out of reach.
    questions: the first so many of each task; None: all. against: the model to compare with.
    """

    names: tuple[str, ...]
    files: Path | None = None
    questions: int | None = None
    against: Path | None = None

    @classmethod
    def of(cls, names: str, **others) -> "TaskConfig":
        """names: as they are typed, `arc_easy,piqa`."""
        return cls(tuple(name.strip() for name in names.split(",") if name.strip()), **others)

    def check(self) -> None:
        if not self.names:
            raise InputError("--tasks names none; give some of lm-eval's, such as arc_easy,piqa.")
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise InputError(f"--tasks has {twice[0]} twice; leave one of them out.")
        if self.questions is not None and self.questions < 1:
            raise InputError(f"--questions must be at least 1, not {self.questions}.")
