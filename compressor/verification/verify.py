"""Verification by a fresh process (`child.py`), which this one starts and listens to."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from compressor.config.json_files import read_object
from compressor.errors import InputError, MachineError, VerificationError
from compressor.model.checkpoint import Checkpoint
from compressor.model.families import FAMILIES
from compressor.model.families.wrappers import WRAPPERS
from compressor.model.weight_files import weight_files
from compressor.verification import bound, child
from compressor.verification.child import GENERATES, TOLD, Progress
from compressor.writing.record import RECORD, read_record


class ChildError(Exception):
    """All that the process said before it broke off."""


def verify(
    folder: Path,
    source: Path | None = None,
    expected: Path | None = None,
    progress: Progress = lambda done, total: None,
    generates: bool = False,
    device: str = "cpu",
) -> dict:
    """Verify in a fresh process; the report it printed, or `VerificationError`.

    expected: a safetensors file of logits [tokens, vocabulary] named by the numbers of `PROMPTS`,
    what a trained, sparse or quantised model computed before it was written, and of how much a
    difference is rounding (`tolerance`, if not `TOLERANCE`). Give a source, or this, or neither.
    progress(done, total) counts the blocks that prompts have passed, in both models. generates: have it
    write some tokens, too. device: a GPU, or the CPU; where a GPU cannot do it the CPU does, which a
    `note` in the report says.
    """
    for path in (folder, source):
        if path is not None and not (path / "config.json").exists():
            raise InputError(f"There is no checkpoint in {path}: it has no config.json.")
    if source is not None:
        check_is_a_cut(folder)
    check_opens(folder)
    command = [
        sys.executable,
        "-P",
        "-m",
        bound.__name__,
        str(os.getpid()),
        child.__name__,
        str(folder),
    ]
    command += [str(against)] if (against := source or expected) else []
    command += [GENERATES] * generates
    command += ["--device", device] if device.startswith("cuda") else []
    code, printed, errors = listened(command, progress)
    if code < 0:
        raise MachineError(
            f"The verification of {folder} was killed by signal {-code}, most likely for want of memory."
        )
    try:
        report = json.loads(printed.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        raise VerificationError(
            f"The verification of {folder} broke off: {last.rstrip('.')}."
        ) from ChildError(errors)
    if report["error"]:
        failure = MachineError if report.get("of_the_machine") else VerificationError
        raise failure(report["error"])
    return report


def check_is_a_cut(folder: Path) -> None:
    """Refuse what does not compute what its source does without some units."""
    if not (folder / RECORD).exists():
        raise InputError(f"{folder} has no {RECORD}, so what was removed is unknown.")
    record = read_record(folder)
    if "plan" not in record:
        raise InputError(f"{folder / RECORD} has no plan; verify it without --source.")
    done = {
        "trained": (record.get("recovery") or {}).get("kept"),
        "quantised": "quantization" in record,
    }
    for what, so in done.items():
        if so:
            raise InputError(
                f"{folder} was {what} after the cut, so it computes something else than its source "
                "without some units; verify it without --source."
            )


def check_opens(folder: Path) -> None:
    """Refuse what would be refused as a source: weights that loaders disagree about, a model that is no
    generator, tensors that its config does not have. Of types without a table here the first alone.
    """
    try:
        config = read_object(folder / "config.json")
        if config.get("model_type") in {*FAMILIES, *WRAPPERS} and not config.get(
            "quantization_config"
        ):
            Checkpoint(folder)
        else:
            weight_files(folder, config)
    except InputError as error:
        raise VerificationError(str(error)) from error


def listened(command: list[str], progress: Progress) -> tuple[int, str, str]:
    """Run a command; its exit code, what it printed, and the lines on its stderr but those of `tell`."""
    errors = []
    with tempfile.TemporaryFile("w+") as out:
        with subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True) as process:
            try:
                for line in process.stderr:
                    word, *numbers = line.split() or [""]
                    if word == TOLD and len(numbers) == 2:
                        progress(*map(int, numbers))
                    else:
                        errors.append(line)
                code = process.wait()
            except BaseException:
                process.kill()
                raise
        out.seek(0)
        return code, out.read(), "".join(errors)
