"""What source and results write after the same beginnings: for those who judge a model by reading it.

Three beginnings of the evaluation text, continued greedily when the results are complete. No job ends
by it, and none takes more memory for it: a model that does not fit as a whole into what the rest of
the job takes writes nothing, and it is said why.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import psutil
import torch

from compressor.config.amounts import size
from compressor.errors import in_a_line
from compressor.job.job import Job
from compressor.job.opening import chosen_device, compute_dtype
from compressor.model.bars import without_bars
from compressor.model.checkpoint import Checkpoint
from compressor.model.loading import open_whole
from compressor.model.memory import free_memory, give_back, trim_heap
from compressor.quantization.reading import open_model
from compressor.text.generation import continuations
from compressor.text.tokens import TokenSet

BEGINNINGS, BEGINNING, WRITTEN = 3, 16, 24  # how many, and tokens of each
INSTEAD = "read what it writes elsewhere"


def continued(job: Job, folders: Sequence[Path]) -> tuple[list[list[dict]], str]:
    """For each folder its samples: `prompt`, and what the source (`before`) and it (`after`) write then;
    and a sentence why there are none, if so.
    """
    nothing: list[list[dict]] = [[] for _ in folders]
    if why := why_not(job):
        return nothing, why
    prompts = beginnings(job.evaluation)
    positions = job.checkpoint.whole.positions or prompts.shape[1] + WRITTEN
    count = min(WRITTEN, positions - prompts.shape[1])
    models = [cast(Checkpoint, job.checkpoint.whole), *map(open_model, folders)]
    wrote = []
    try:
        with job.run.stage("continue") as progress:
            for number, model in enumerate(models, 1):
                wrote.append(one_continued(job, model, prompts, count))
                progress(number, len(models))
    except Exception as error:  # the results are made, and are not lost for this
        return nothing, f"There are no samples: {in_a_line(error)}"
    first, *others = wrote
    return [
        [
            {"prompt": prompt, "before": before, "after": after}
            for (prompt, before), (_, after) in zip(first, each, strict=True)
        ]
        for each in others
    ], ""


def why_not(job: Job) -> str:
    """Why nothing is written; nothing if something is."""
    runtime, source = job.config.runtime, job.checkpoint.whole
    if job.evaluation is None:
        return "There are no samples, since there is no evaluation text to begin them."
    if not runtime.verify:
        return "There are no samples, since no result was run (--no-verify)."
    device = chosen_device(runtime.device)
    give_back(device)
    trim_heap()
    needed = source.parameters * compute_dtype(runtime.dtype, source.dtype, device).itemsize
    free: float = free_memory(device)
    if not device.startswith("cuda"):
        taken = psutil.Process().memory_info().rss
        room = job.foreseen.memory - taken
        free = min(free, max(room, job.foreseen.memory // 2))
        free = min(free, (runtime.max_memory or float("inf")) - taken)
    if needed > free:
        return (
            f"There are no samples, since the whole model takes {size(needed)} of memory, which is more "
            "than the job does."
        )
    return ""


def beginnings(tokens: TokenSet) -> torch.Tensor:
    """The first tokens of a few sequences, evenly spread over a text, equally long: [n, tokens]."""
    sequences = [s for s in tokens.sequences if len(s) > BEGINNING] or tokens.sequences
    count = min(BEGINNINGS, len(sequences))
    chosen = [sequences[i * len(sequences) // count] for i in range(count)]
    length = min(BEGINNING, *(max(1, len(each) // 2) for each in chosen))
    return torch.stack([each[:length] for each in chosen])


def one_continued(
    job: Job, checkpoint: Checkpoint, prompts: torch.Tensor, count: int
) -> list[tuple[str, str]]:
    """Beginnings and what one model writes after them; its memory is given back."""
    runtime = job.config.runtime
    device = chosen_device(runtime.device)
    dtype = compute_dtype(runtime.dtype, checkpoint.dtype, device)
    with without_bars():
        model = open_whole(checkpoint, device, dtype, INSTEAD)
        found = continuations(model, checkpoint.tokenizer(), prompts, count)
    del model
    give_back(device)
    return found
