"""What is wrong with a folder that any tool left, and how it is mended; what is ambiguous is asked.

Every kind of fault is a record (`fault.py`): how it is seen, and how it is mended or why not. They are
looked for in an order in which each can rely on those before it. All is done in memory, on headers and
config.json; `mended.py` is the result as a source, which is written like any other.
"""

from dataclasses import dataclass
from pathlib import Path

from compressor.analysis.doctor import biases, files, heads, pickles, settings, tensors, widths
from compressor.analysis.doctor.fault import Asked, Fault, Found, Patient, treat
from compressor.analysis.doctor.mended import Mended
from compressor.config.json_files import read_object
from compressor.errors import InputError, MendableError
from compressor.model.checkpoint import Checkpoint
from compressor.model.configs import read_as_given
from compressor.model.weight_files import check_kinds

OF_FILES: tuple[Fault, ...] = (*files.FAULTS, *pickles.FAULTS)
OF_TENSORS: tuple[Fault, ...] = (
    *tensors.FAULTS,
    *widths.FAULTS,
    *heads.FAULTS,
    *biases.FAULTS,
    *settings.FAULTS,
)
EVERY = (*OF_FILES, *tensors.NAMES, *OF_TENSORS)


@dataclass(frozen=True)
class Examined:
    """The faults that were found, and what the folder is without them; `source` is None without any."""

    found: list[Found]
    source: Mended | None


def examine(path: Path, asked: Asked | None = None) -> Examined:
    """InputError where there is no folder, or it cannot be mended, or not without an answer."""
    if not path.is_dir():
        raise InputError(f"There is no folder {str(path)!r}; give a checkpoint folder.")
    check_kinds(path)
    with read_as_given():
        try:
            return examined(path, asked or Asked())
        except MendableError as error:  # not by this
            raise InputError(error.said) from error


def examined(path: Path, asked: Asked) -> Examined:
    config = read_object(path / "config.json", "without it no one knows what the tensors are")
    patient = Patient(path, config, asked, original=dict(config))
    found = treat(patient, OF_FILES)
    tensors.open_weights(patient)
    found += treat(patient, tensors.NAMES)
    tensors.complete(patient)
    found += treat(patient, OF_TENSORS)
    if not found:
        Checkpoint(path)  # refuses what no mend is for
        return Examined([], None)
    return Examined(found, Mended(patient))
