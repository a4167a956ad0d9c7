"""One whole job on a checkpoint of a few blocks, stage by stage, and what a model of 32 would take.

    python bench/gpu_stages.py MODEL DEST compress --keep 0.8 --fast

Runs `compressor compress MODEL DEST --keep 0.8 --fast` in this process, without verification, and puts
a row for every stage: its seconds, and `whole`, what `--of` blocks take. A job that is told to end puts
the stages that it had reached.
"""

import io
import json
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import typer

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from gpu_rows import put

from compressor.cli import running, stages
from compressor.job.progress import Meter
from compressor.model.checkpoint import Checkpoint

ONCE = {"draw"}  # what does not grow with the model
FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(add_completion=False)


@app.command(context_settings=FORWARDED)
def main(
    context: typer.Context,
    model: Path,
    dest: Path,
    command: Annotated[str, typer.Argument(help="compress or sparsify")],
    of: Annotated[int, typer.Option(help="Blocks of the whole model.")] = 32,
) -> None:
    checkpoint = Checkpoint(model)
    more = of / checkpoint.blocks
    given = [command, str(model), str(dest), *context.args, "--json", "--no-verify", "--overwrite"]
    meters: list[Meter] = []
    enter = Meter.__enter__

    def entered(meter: Meter) -> Meter:
        meters.append(meter)
        return enter(meter)

    printed = io.StringIO()
    with patch.object(Meter, "__enter__", entered), redirect_stdout(printed):
        code = running.run(stages.stages, given)
    for meter in meters:
        for stage, seconds in meter.seconds.items():
            whole = seconds if stage in ONCE else seconds * more
            broken = {"why": "the job broke off"} if code else {}
            put(stage, seconds, "failed" if code else "ok", whole=round(whole, 2), **broken)
            print(f"{stage}: {seconds:.2f} s; {whole:.1f} s of {of} blocks")
    shutil.rmtree(dest, ignore_errors=True)
    if code:
        raise SystemExit(code)
    found = json.loads(printed.getvalue())
    peaks = {name: found[name] for name in ("peak_rss_bytes", "peak_gpu_bytes")}
    first = (t for name, t in checkpoint.tensors.items() if ".layers.0." in name)
    put("memory", 0, **peaks, block_bytes=sum(t.end - t.begin for t in first))


if __name__ == "__main__":
    app()
