"""What right and wrong answers say: a share with its standard error, and how two models differ.

Both models answer the same questions, so what is compared are pairs: most of the noise of which
questions were asked is in both shares, and cancels in their difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev


@dataclass(frozen=True)
class Answers:
    """A model's answers to the questions of one task.

    right: by metric, 1 for every question that was answered right and 0 for others, in their order.
    chance: the share that guessing gets right, which is the mean of 1 / choices; None where no
    choices are given. source: where the questions are from.
    """

    right: Mapping[str, Sequence[int]]
    chance: float | None
    source: str


def share(right: Sequence[float]) -> dict:
    """`value`, and its standard error `stderr`; of one question that is None."""
    return {"value": fmean(right), "stderr": error(right)}


def error(values: Sequence[float]) -> float | None:
    """The standard error of a mean, by the deviation of a sample."""
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else None


def paired(before: Sequence[int], after: Sequence[int]) -> dict:
    """How `after` differs from `before` on the same questions: `difference` of the shares, its paired
    standard error, and how many went from right to wrong (`lost`) and from wrong to right (`won`).
    """
    changes = [b - a for a, b in zip(before, after, strict=True)]
    return {
        "difference": fmean(changes),
        "difference_stderr": error(changes),
        "lost": changes.count(-1),
        "won": changes.count(1),
    }


def judged(after: Mapping[str, Answers], before: Mapping[str, Answers] | None = None) -> dict:
    """By task: how many `questions`, `chance`, `source`, and by metric what `share` says; with another
    model's answers also its `against` and what `paired` says.
    """
    told = {}
    for task, ours in after.items():
        metrics = {name: share(right) for name, right in ours.right.items()}
        for name, told_of in metrics.items() if before else ():
            theirs = before[task].right[name]
            told_of |= {"against": share(theirs)} | paired(theirs, ours.right[name])
        count = len(next(iter(ours.right.values())))
        about = {"questions": count, "chance": ours.chance, "source": ours.source}
        told[task] = about | {"metrics": metrics}
    return told
