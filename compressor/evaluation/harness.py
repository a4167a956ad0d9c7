"""Tasks of lm-eval, asked as it asks them: its prompts, its metrics, zero-shot unless a task says how.

lm-eval is an extra, and imported where a task is asked alone.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

from compressor.config.hub_names import SECONDS
from compressor.errors import InputError, MachineError, in_a_line
from compressor.evaluation.answers import Answers
from compressor.evaluation.questions import as_task, read_questions
from compressor.model.bars import without_bars

# Sequences at once. The same on every machine, since sums of others round otherwise.
BATCH = 8
RIGHT = ("acc", "acc_norm", "exact_match")  # the metrics that are 1 or 0 of every question
SEED = 1234  # lm-eval's own, of the examples that a task has in its prompts
INSTALL = "pip install 'compressor-llm[eval]'"
Progress = Callable[[int, int], None]


def open_tasks(names: Sequence[str], files: Path | None) -> dict[str, Any]:
    """The tasks of lm-eval, by name; a group's are those in it. files: a folder with their questions
    (`questions.py`); None: the data sets that lm-eval names, of the hub.
    """
    questions = [read_questions(files, name) for name in names] if files else []
    try:
        from lm_eval.api.task import ConfigurableTask
    except ImportError as error:
        raise MachineError(
            f"--tasks are asked by lm-eval, which is not installed ({error}); {INSTALL}."
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    loaded = {each.name: ConfigurableTask(config=as_task(each)) for each in questions}
    loaded = loaded or of_hub(names)
    for name, task in loaded.items():
        if not {*RIGHT} & {*task.aggregation()}:
            by = ", ".join(task.aggregation())
            raise InputError(
                f"The task {name} is judged by {by}, and answers are compared as right or wrong "
                f"({', '.join(RIGHT)}); choose others."
            )
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(SEED)
    return loaded


def of_hub(names: Sequence[str]) -> dict[str, Any]:
    """Tasks as lm-eval has them, with their data sets."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    for name in names:
        check_name(name, manager.all_tasks)
    asked, reached = ", ".join(names), is_reached()
    try:
        with nullcontext() if reached else offline():
            return manager.load([*names])["tasks"]
    except Exception as error:  # whatever a data set's own library raises
        if not reached:
            raise MachineError(
                f"The hub cannot be reached for the questions of {asked}, and no copy of them is here; "
                "give them as files (--task-files FOLDER)."
            ) from error
        raise InputError(
            f"lm-eval cannot open the questions of {asked}: {in_a_line(error)} Choose other tasks, or "
            "give the questions as files (--task-files FOLDER)."
        ) from error


def is_reached() -> bool:
    """Whether the hub answers; those who load a data set would ask again and again, with a line each."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # of the library that asks, which is another one in every version
        return False
    return True


@contextmanager
def offline() -> Iterator[None]:
    """While open, data sets are looked for in their cache alone."""
    from datasets import config
    from huggingface_hub import constants

    with (
        patch.object(config, "HF_HUB_OFFLINE", True),
        patch.object(constants, "HF_HUB_OFFLINE", True),
    ):
        yield


def check_name(name: str, known: Sequence[str]) -> None:
    if name not in known:
        close = get_close_matches(name, known, 3)
        hint = f"; there is {', '.join(close)}" if close else ""
        raise InputError(f"lm-eval has no task {name!r}{hint}. (`lm-eval ls tasks` lists them.)")


def answers(
    model, tokenizer, tasks: dict[str, Any], questions: int | None, progress: Progress
) -> dict[str, Answers]:
    """A model's answers to the first so many `questions` of every task, or to all.

    progress(done, total) counts sequences: a question is one for every choice.
    """
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    done = 0

    def total() -> int:
        return sum(len(task.instances or ()) for task in tasks.values())

    def count(module, arguments, output) -> None:
        nonlocal done
        done = min(total(), done + len(output.logits))
        progress(done, total())

    with without_bars(), model.register_forward_hook(count):
        judge = HFLM(model, backend="causal", tokenizer=tokenizer, batch_size=BATCH)
        loaded = {"tasks": tasks, "groups": {}, "group_map": {}}
        try:
            found = evaluate(judge, loaded, limit=questions, bootstrap_iters=0)["samples"]
        except AssertionError:  # lm-eval's only word for what is too long
            check_lengths(tasks, tokenizer, judge.max_length)
            raise
    progress(total(), total())  # of sequences that are the same, one is read
    return {name: answers_of(task, found[name]) for name, task in tasks.items()}


def check_lengths(tasks: dict[str, Any], tokenizer, positions: int) -> None:
    """Refuse a choice that has more tokens than the model has positions."""
    for name, task in tasks.items():
        for asked in task.instances or ():
            choice = asked.args[1]
            length = len(tokenizer(choice)["input_ids"]) if isinstance(choice, str) else 0
            if length > positions:
                raise InputError(
                    f"The task {name} has a choice of {length} tokens, and the model has {positions} "
                    "positions; choose other tasks."
                )


def answers_of(task, samples: Sequence[dict]) -> Answers:
    """What lm-eval says of every question. By other filters than the usual one a metric is another."""
    right: dict[str, list[int]] = {}
    for sample in samples:
        by = "" if sample["filter"] == "none" else f" ({sample['filter']})"
        for metric in RIGHT:
            if metric in sample:
                right.setdefault(metric + by, []).append(int(sample[metric]))
    chance = None
    if task.OUTPUT_TYPE == "multiple_choice":
        chance = sum(1 / len(sample["filtered_resps"]) for sample in samples) / len(samples)
    path = task.config.dataset_path
    return Answers(right, chance, f"lm-eval {version('lm-eval')}, {path or 'files'}")
