"""The stage `eval --tasks`: how many questions a folder answers, and which ones its source does not."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from compressor.config.hub_names import called
from compressor.config.runtime import Runtime
from compressor.config.tasks import TaskConfig
from compressor.evaluation.answers import Answers, judged
from compressor.evaluation.harness import answers, open_tasks
from compressor.job.asked import check_source
from compressor.job.opening import chosen_device, compute_dtype
from compressor.job.progress import Lines
from compressor.model.bars import without_bars
from compressor.model.checkpoint import Checkpoint
from compressor.model.loading import open_whole
from compressor.quantization.reading import open_model

INSTEAD = "measure its perplexity, which is streamed (--text TEXT)"


def answer_tasks(folder: Path, asked: TaskConfig, runtime: Runtime, lines: Lines) -> dict:
    """`model` and `against` (None, or the other's name), and of every task of `tasks` what
    `evaluation.answers.judged` says.

    The models are in memory as wholes, one after the other.
    """
    asked.check()
    folders = [folder, *([asked.against] if asked.against else [])]
    for each in folders:
        check_source(each)
    models = [open_model(each) for each in folders]
    tasks = open_tasks(asked.names, asked.files)
    found: list[Mapping[str, Answers]] = []
    for model in lines.each([Named(called(m.path), m) for m in models]):
        with lines.stage("answer") as progress:
            found.append(answered(model.checkpoint, tasks, asked.questions, runtime, progress))
    return {
        "model": called(folder),
        "against": called(asked.against) if asked.against else None,
        "tasks": judged(*found),
    }


class Named(NamedTuple):
    """A model by its name, as `Lines.each` tells which one is at work."""

    name: str
    checkpoint: Checkpoint


def answered(
    checkpoint: Checkpoint,
    tasks: dict,
    questions: int | None,
    runtime: Runtime,
    progress: Callable[[int, int], None],
) -> dict[str, Answers]:
    """What one model answers."""
    device = chosen_device(runtime.device)
    dtype = compute_dtype(runtime.dtype, checkpoint.dtype, device)
    with without_bars():
        model = open_whole(checkpoint, device, dtype, INSTEAD)
    return answers(model, checkpoint.tokenizer(), tasks, questions, progress)
