"""The stage that says what a checkpoint is worth: how well it predicts a text, what it answers."""

import json
from pathlib import Path
from typing import Annotated

from typer import Option

from compressor.cli import flags
from compressor.cli.arguments import Panels, offers
from compressor.config.job import JobConfig
from compressor.config.options import check_values
from compressor.config.runtime import Runtime
from compressor.config.tasks import TaskConfig
from compressor.config.text import TextConfig
from compressor.errors import InputError
from compressor.job.asked import check_runtime, check_texts
from compressor.job.console import console

QUESTIONS = "Questions"
PANELS: Panels = {
    "Text": {TextConfig: ("length",)},
    QUESTIONS: {},
    "Machine": {Runtime: ("device", "dtype")},
}


@offers(PANELS)
def evaluate(
    folder: flags.Here,
    text: Annotated[
        str | None, Option(help="Text as for --evaluation.", rich_help_panel="Text")
    ] = None,
    tasks: Annotated[
        str | None,
        Option(help="Tasks of lm-eval, such as arc_easy,piqa.", rich_help_panel=QUESTIONS),
    ] = None,
    task_files: Annotated[
        Path | None,
        Option(
            help="Folder with their questions, NAME.jsonl each; else they are of the hub.",
            rich_help_panel=QUESTIONS,
        ),
    ] = None,
    questions: Annotated[
        int | None, Option(help="The first so many of each task.", rich_help_panel=QUESTIONS)
    ] = None,
    against: Annotated[
        Path | None,
        Option(
            help="Another model to ask the same, its source.",
            parser=flags.here,
            metavar="SOURCE",
            rich_help_panel=QUESTIONS,
        ),
    ] = None,
    as_json: flags.Json = False,
    *,
    options: dict,
) -> None:
    """Measure the perplexity of a checkpoint, streamed block by block, or what it answers to tasks."""
    if (text is None) == (tasks is None):
        raise InputError(
            "Give a text to predict (--text) or tasks to answer (--tasks): one of them."
        )
    if tasks is None:
        of_tasks = {"--task-files": task_files, "--questions": questions, "--against": against}
        for flag, value in of_tasks.items():
            if value is not None:
                raise InputError(f"{flag} is for --tasks; leave it out.")
        predict(folder, text, options, as_json)
        return
    if "length" in options:
        raise InputError("--length is for --text; questions are as long as they are.")
    asked = TaskConfig.of(tasks, files=task_files, questions=questions, against=against)
    answer(folder, asked, options, as_json)


def predict(folder: Path, text: str, options: dict, as_json: bool) -> None:
    """The perplexity of a text."""
    config = JobConfig(folder, folder).with_options(evaluation=text, **options)
    check_values(config.text)
    check_runtime(config.runtime)
    check_texts(config.text)
    from compressor.job.evaluate import evaluate_folder
    from compressor.text.tokens import describe

    measurement = evaluate_folder(folder, config.text, config.runtime)
    if as_json:
        print(json.dumps(measurement, indent=1))
        return
    print(f"perplexity {measurement['perplexity']:.4f}  ({describe(measurement['protocol'])})")
    for note in measurement["warnings"]:
        print(note)


def answer(folder: Path, asked: TaskConfig, options: dict, as_json: bool) -> None:
    """Shares of questions that are answered right."""
    asked.check()
    runtime = JobConfig(folder, folder).with_options(**options).runtime
    check_runtime(runtime)
    from compressor.job.answer import answer_tasks
    from compressor.job.progress import Lines
    from compressor.report.answers import notes, table

    found = answer_tasks(folder, asked, runtime, Lines(as_json))
    if as_json:
        print(json.dumps(found, indent=1))
        return
    console().print(table(found))
    for note in notes(found):
        print(note)
