"""The job of `doctor`: what other tools left is mended as a new folder, verified like any result."""

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file

from compressor.analysis.doctor import Examined, examine
from compressor.analysis.doctor.fault import Asked
from compressor.analysis.doctor.mended import Mended, writer
from compressor.analysis.doctor.reference import reference
from compressor.analysis.doctor.settings import ROPES
from compressor.config.layouts import check_layout_name
from compressor.config.runtime import Runtime
from compressor.errors import InputError, MendableError
from compressor.job.destination import check_dest
from compressor.job.progress import Lines
from compressor.job.proving import proved
from compressor.job.publishing import publish_result
from compressor.job.run import Run, open_run
from compressor.model.checkpoint import Checkpoint
from compressor.model.loading import prompt_ids
from compressor.model.weight_files import ADAPTERS
from compressor.writing.containers import container_notes
from compressor.writing.record import read_record, versions, write_record
from compressor.writing.side_files import left_behind, reason
from compressor.writing.tokenizer_class import class_notes
from compressor.writing.writer import write_folder

CARD = "README.md"


def mend(folder: Path, out: Path, asked: Asked, runtime: Runtime, lines: Lines) -> dict:
    """Mend `folder` as the new folder `out`; where nothing is wrong with it, nothing is written.

    `found` is a list of `fault`, `seen` and `done`; `out` None where there are none. `report` is what
    the fresh process found. `InputError` says why a folder cannot be mended.
    """
    check_asked(asked)
    check_dest(folder, out, runtime)
    examined = examine(folder, asked)
    result = {"path": str(folder), "out": None, "found": [asdict(each) for each in examined.found]}
    if (source := examined.source) is None:
        return result
    tokenizer = source.tokenizer()
    prompts = prompt_ids(tokenizer, source.positions)
    form = writer(source)
    with open_run(out, runtime, lines) as run:
        with run.stage("write") as progress:
            write_folder(form, run.partial, progress=progress)
        tidy(source, run.partial)
        about = {"doctor": described(examined), "layout": form.layout}
        write_record(run.partial, read_record(folder) | about)
        try:
            written = Checkpoint(run.partial)
        except MendableError as error:  # not by this
            raise InputError(f"{folder} cannot be mended: {error.said}") from error
        report = verified(source, prompts, run, runtime) if runtime.verify else None
        publish_result(run.partial, out, runtime)
    notes = [*source.notes, *container_notes(source, written, form.layout), *left_behind(source)]
    return result | {
        "out": str(out),
        "model_type": form.container,
        "layout": form.layout,
        "parameters": written.parameters,
        "bytes": written.bytes,
        "report": report,
        "notes": [*notes, *class_notes(folder, out)],
    }


def check_asked(asked: Asked) -> None:
    if asked.rope not in (None, *ROPES):
        raise InputError(f"--rope is {' or '.join(ROPES)}, not {asked.rope!r}.")
    if asked.layout is not None:
        check_layout_name(asked.layout)


def tidy(source: Mended, folder: Path) -> None:
    """The card goes along, and no adapter's settings."""
    card = source.patient.path / CARD
    if card.is_file() and not reason(card):  # such as a link out of the folder
        shutil.copyfile(card, folder / CARD)
    for name in ADAPTERS:
        (folder / name).unlink(missing_ok=True)


def described(examined: Examined) -> dict:
    found = [asdict(each) for each in examined.found]
    return {"found": found, "versions": versions()}


def verified(source: Mended, prompts: list, run: Run, runtime: Runtime) -> dict:
    """The report of a fresh process, with the tensors' own logits as what it compares with."""
    with tempfile.TemporaryDirectory() as place:
        expected = None
        if (logits := reference(source, prompts)) is not None:
            expected = Path(place) / "expected.safetensors"
            save_file({str(i): each.contiguous() for i, each in enumerate(logits)}, expected)
        return proved(run, runtime, run.partial, expected=expected, generates=True)
