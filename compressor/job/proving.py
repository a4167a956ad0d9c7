"""The proof that a result works, where the job runs: a fresh process on its GPU, or on the CPU."""

from pathlib import Path

from compressor.config.runtime import Runtime
from compressor.job.opening import chosen_device
from compressor.job.run import Run
from compressor.model.memory import give_back
from compressor.verification.verify import verify


def proved(
    run: Run,
    runtime: Runtime,
    folder: Path,
    source: Path | None = None,
    expected: Path | None = None,
    generates: bool = False,
) -> dict:
    """The report of `verify`, given what it is."""
    device = chosen_device(runtime.device)
    give_back(device)  # the fresh process shares the GPU with this one
    with run.stage("verify") as progress:
        report = verify(
            folder, source, expected, progress=progress, generates=generates, device=device
        )
    if "note" in report:
        run.lines.fact("verify", report["note"])
    return report
