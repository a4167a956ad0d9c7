"""The text that a model writes itself: `compressor generate`, and `--calibration own`, of which a job
keeps the file in its work folder.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from compressor.config.runtime import Runtime
from compressor.config.text import OWN, TextConfig
from compressor.job.opening import chosen_device, compute_dtype
from compressor.job.reading import longest
from compressor.job.run import Run
from compressor.model.checkpoint import Checkpoint
from compressor.model.finite import check_finite
from compressor.model.loading import open_whole
from compressor.text.generation import written
from compressor.text.set_aside import SHARE
from compressor.text.texts import Text, read_text

FILE = "own.jsonl"


def write_own(
    checkpoint: Checkpoint,
    runtime: Runtime,
    out: Path,
    tokens: int,
    length: int,
    progress: Callable[[int, int], None],
) -> int:
    """Write the new file `out`, JSON lines, and say how many tokens it has: `tokens` or a few more, in
    documents of at most `length`. The whole model is in memory meanwhile; MachineError where there is no
    room for it.
    """
    device, tokenizer = chosen_device(runtime.device), checkpoint.tokenizer()
    precision = compute_dtype(runtime.dtype, checkpoint.dtype, device)
    model = open_whole(checkpoint, device, precision, "calibrate on a text (--calibration TEXT)")
    for name, weight in model.named_parameters():
        check_finite(name, weight)
    length = min(length, checkpoint.positions or length)
    made, partial = 0, out.with_name(out.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for text, count in written(model, tokenizer, tokens, length, runtime.seed):
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                made += count
                progress(min(made, tokens), tokens)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return made


def own_text(config: TextConfig, checkpoint: Checkpoint, runtime: Runtime, run: Run) -> Text | None:
    """The text `own`, as long as it takes to calibrate and, if its end is to measure results, for that;
    None where no text of the job is that.
    """
    if OWN not in (config.calibration, config.calibration_also):
        return None
    file, limit = run.work / FILE, longest(config, checkpoint)
    tokens = config.samples * limit if config.samples else config.calibration_tokens
    if config.evaluation is None:
        tokens += tokens // SHARE
    if not file.exists():
        with run.stage("generate") as progress:
            write_own(checkpoint, runtime, file, tokens, limit, progress)
    return replace(read_text(str(file)), source=OWN)
