"""Biases that the config does not have: FLAP leaves one at each output projection, the mean of what it
took away. Where the class has a switch for them, those that it has besides are zeros, which is exact.
"""

import torch

from compressor.analysis.doctor.fault import Fault, Patient, entry_of
from compressor.analysis.doctor.tensors import read
from compressor.errors import InputError
from compressor.model.configs import config_of
from compressor.model.empty_model import empty_model
from compressor.model.per_layer import KEY
from compressor.model.weight_files import shown

# By model type: the switches of its config, and the modules of a block that get a bias by each.
SWITCHES = {
    "llama": {
        "attention_bias": tuple(f"self_attn.{name}_proj" for name in "qkvo"),
        "mlp_bias": tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    },
}


def strangers(patient: Patient) -> list[str]:
    """Biases of blocks that the config's class does not have."""
    family, layers = patient.family, patient.family.layers + "."
    biases = [n for n in patient.tensors if n.startswith(layers) and n.endswith(".bias")]
    known = {f"{module}.bias" for module in switched(patient)}
    strange = [name for name in biases if inside(patient, name) not in known]
    if not strange:
        return []
    config = {key: value for key, value in patient.config.items() if key != KEY}
    try:
        needed = empty_model(config_of(config, family), family, str(patient.path)).known
    except Exception:  # whatever the class raises: a later fault says so
        return strange if family.model_type in SWITCHES else []
    return [name for name in strange if name not in needed]


def inside(patient: Patient, name: str) -> str:
    """The name of a block's tensor inside the block."""
    return name.removeprefix(patient.family.layers + ".").partition(".")[2]


def switched(patient: Patient) -> list[str]:
    """The modules that have a bias by the config's switches."""
    switches = SWITCHES.get(patient.family.model_type, {})
    return [name for key, names in switches.items() if patient.config.get(key) for name in names]


def seen(patient: Patient) -> str | None:
    names = strangers(patient)
    return f"The tensors have biases that config.json has not ({shown(names)})." if names else None


def mend(patient: Patient) -> str:
    names, family = strangers(patient), patient.family
    if not any(value.any() for name in names for value in read(patient, [name]).values()):
        for name in names:
            del patient.tensors[name]
        return "They are left out: all of them are zero."
    switches = SWITCHES.get(family.model_type, {})
    modules = {inside(patient, name).removesuffix(".bias") for name in names}
    if lacking := sorted(modules - {each for known in switches.values() for each in known}):
        raise InputError(
            f"The class of {family.model_type} has no bias in {shown(lacking)}, and these are not zero."
        )
    on = [key for key, known in switches.items() if modules & {*known}]
    added = 0
    for key in on:
        patient.config[key] = True
        for block in patient.numbers():
            added += filled(patient, block, switches[key])
    zeros = f", and {added} that its class has besides are zeros" if added else ""
    return f"{' and '.join(on)} {'are' if on[1:] else 'is'} true now{zeros}."


def filled(patient: Patient, block: int, modules: tuple[str, ...]) -> int:
    """Give a block zeros for the biases that it lacks; how many."""
    added = 0
    for module in modules:
        name = f"{patient.family.layers}.{block}.{module}"
        if f"{name}.bias" not in patient.tensors:
            weight = patient.tensors[f"{name}.weight"]
            zeros = torch.zeros(weight.shape[0], dtype=weight.dtype)
            patient.tensors[f"{name}.bias"] = entry_of(zeros)
            added += 1
    return added


FAULTS = (Fault("biases", seen, mend),)
