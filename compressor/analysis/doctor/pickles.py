"""Weights in pickles: state dicts are opened by `torch.load(weights_only=True)`, and nothing else is."""

import json
from pathlib import Path

import torch

from compressor.analysis.doctor.fault import Fault, Patient, entry_of
from compressor.analysis.doctor.files import check_whole, loose
from compressor.errors import InputError, in_a_line
from compressor.model.tensors import DTYPES
from compressor.model.weight_files import ADAPTERS, PICKLES, placed_by, shown

WHOLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# What trainings leave beside the weights.
OTHERS = {
    *("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt"),
    *("scaler.pt", "rng_state.pth", *ADAPTERS),
}
INSIDE = ("state_dict", "model_state_dict", "model")  # where trainings keep the state dict
HOW = (
    "Where it was made, save its state dict: `torch.save(model.state_dict(), 'pytorch_model.bin')` and "
    "`model.config.save_pretrained('.')`; of LLM-Pruner's file the model is "
    "`torch.load(FILE, weights_only=False)['model']`. Give the folder of both, with the tokenizer"
)


def pickled(patient: Patient) -> str | None:
    if loose(patient.path):
        return None
    names = pickles(patient.path)
    return (
        f"The weights are pickled ({shown(names)}); loading them can run code." if names else None
    )


def pickles(path: Path) -> list[str]:
    """The files to open: what transformers takes, or all that there are."""
    names = {file.name for kind in PICKLES for file in path.glob(kind)} - OTHERS
    if WHOLE in names:
        return [WHOLE]
    return sorted({*indexed(path)} or names)


def indexed(path: Path) -> list[str]:
    return [Path(file).name for file in placed_by(path / INDEX).values()]


def unpickled(patient: Patient) -> str:
    names = pickles(patient.path)
    if not indexed(patient.path):
        check_whole(names)
    for name in names:
        for key, tensor in state_dict(patient.path / name).items():
            if key in patient.tensors:
                raise InputError(f"{key} is in more than one of them.")
            patient.tensors[key] = entry_of(tensor, patient.path / name)
    if lost := {*placed_by(patient.path / INDEX)} - {*patient.tensors}:
        raise InputError(f"They lack {shown(sorted(lost))}, which {INDEX} names.")
    patient.files = []
    return "The state dict was opened without running any, and is written as safetensors."


def state_dict(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by their names, mapped where its format allows that."""
    if not file.is_file():
        raise InputError(f"{file.name} is not here; download it.")
    try:
        value = opened(file)
    except Exception as error:  # whatever torch raises, it is no state dict
        reason = in_a_line(error).partition(". ")[0].rstrip(".")
        raise InputError(
            f"{file.name} is no state dict (torch says: {reason[:160]}), so it is not opened. {HOW}."
        ) from error
    for name in INSIDE:
        inner = value.get(name) if isinstance(value, dict) else None
        value = inner if isinstance(inner, dict) else value
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{file.name} holds a {type(value).__name__} and no state dict. {HOW}.")
    tensors = {name: each for name, each in value.items() if isinstance(each, torch.Tensor)}
    if not tensors:
        raise InputError(f"{file.name} holds no tensors. {HOW}.")
    return tensors


def opened(file: Path):
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # formats before PyTorch 1.6 are not mapped
        return torch.load(file, map_location="cpu", weights_only=True)


def check_dtypes(patient: Patient) -> None:
    """InputError for what no file of a model has as weights."""
    for name, entry in patient.tensors.items():
        if entry.dtype not in DTYPES.values():
            dtype = str(entry.dtype).removeprefix("torch.")
            raise InputError(
                f"{name} in {patient.path} is of dtype {dtype}; only {json.dumps([*DTYPES])} are read."
            )


FAULTS = (Fault("pickled weights", pickled, unpickled),)
