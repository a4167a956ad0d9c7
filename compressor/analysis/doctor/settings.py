"""Faults of config.json that no width shows: its class refuses it, a dtype, rotary settings, an id."""

from collections import Counter
from collections.abc import Iterator

from compressor.analysis.doctor.fault import Fault, Patient
from compressor.analysis.doctor.tensors import said
from compressor.analysis.inspection.loaders.older import misread
from compressor.errors import InputError, in_a_line
from compressor.model.configs import config_of, other_type
from compressor.model.per_layer import KEY

DTYPE_KEYS = ("dtype", "torch_dtype")
ROPES = OLD, NEW = "rope_scaling", "rope_parameters"  # of transformers 4 and 5, and for --rope


# -- what transformers refuses --------------------------------------------------------------------


def refused(patient: Patient) -> str | None:
    try:
        config_of(without_blocks(patient), patient.family)
    except Exception as error:  # whatever the class raises, it is the config that it cannot take
        return f"transformers refuses config.json: {in_a_line(error)}"
    return None


def without_blocks(patient: Patient) -> dict:
    return {key: value for key, value in patient.config.items() if key != KEY}


def contained(patient: Patient) -> str:
    changes = other_type(without_blocks(patient), patient.family)
    if not changes:
        raise InputError("No other type computes the same and takes it.")
    patient.config |= changes
    for key in patient.family.container.without if patient.family.container else ():
        patient.config.pop(key, None)
    patient.become(changes["model_type"])
    return f"The same tensors load as {changes['model_type']}, whose arithmetic is the same."


# -- the dtype ------------------------------------------------------------------------------------


def stored(patient: Patient) -> list[str]:
    """Names of the dtypes that weights are stored in, of the most weights first."""
    counts: Counter[str] = Counter()
    for entry in patient.tensors.values():
        counts[str(entry.dtype).removeprefix("torch.")] += entry.numel
    return [name for name, _ in counts.most_common()]


def dtype(patient: Patient) -> str | None:
    there = stored(patient)
    for key in DTYPE_KEYS:
        told = patient.config.get(key)
        if told is not None and str(told).removeprefix("torch.") not in there:
            return (
                f"config.json says {key} {told}, and weights are stored as {' and '.join(there)}."
            )
    return None


def mend_dtype(patient: Patient) -> str:
    patient.config |= dict.fromkeys(DTYPE_KEYS, stored(patient)[0])
    return f"{' and '.join(DTYPE_KEYS)} are {stored(patient)[0]} now."


# -- the rotary embedding -------------------------------------------------------------------------


def contradictions(patient: Patient) -> Iterator[str]:
    """Where the form of transformers 5 and the one before say different things."""
    config, family = patient.config, patient.family
    rope = config.get(NEW) or {}
    whole, local = rope.get("full_attention", rope), rope.get("sliding_attention") or {}
    pairs = [
        (family.spellings.get("rope_theta", "rope_theta"), "rope_theta", whole),
        (
            family.spellings.get("partial_rotary_factor", "partial_rotary_factor"),
            "partial_rotary_factor",
            whole,
        ),
        ("rope_local_base_freq", "rope_theta", local),
    ]
    for old, new, values in pairs:
        if None not in (config.get(old), values.get(new)) and config[old] != values[new]:
            yield f"{old} {config[old]:g} and, in {NEW}, {values[new]:g}"
    scaling = dict(config.get(OLD) or {})
    if "type" in scaling:
        scaling["rope_type"] = scaling.pop("type")
    for name, value in (scaling if whole else {}).items():
        if (other := whole.get(name, "default" if name == "rope_type" else None)) != value:
            yield f"{name} {value} in {OLD} and {other} in {NEW}"


def rope(patient: Patient) -> str | None:
    if told := next(contradictions(patient), None):
        return f"config.json says {told}: transformers 4 and 5 compute other things by it."
    if patient.family.alibi or NEW not in patient.config:
        return None
    why = misread(patient.config, patient.family)
    return why and f"transformers before 5 misreads the rotary settings: {why}."


def one_rope(patient: Patient) -> str:
    config, family = patient.config, patient.family
    olds = {OLD, "rope_local_base_freq"}
    olds |= {family.spellings.get(n, n) for n in ("rope_theta", "partial_rotary_factor")}
    if any(contradictions(patient)):
        if patient.asked.rope is None:
            raise InputError(f"Which is right is not known; say it with --rope {OLD} or {NEW}.")
        for key in {NEW} if patient.asked.rope == OLD else olds:
            config.pop(key, None)
        return f"Both forms say what {patient.asked.rope} did, as was said (--rope)."
    for key in olds:
        if config.get(key, ...) is None:
            del config[key]
    return "It is written in both forms."


# -- an id that no row of the embedding has -------------------------------------------------------


def padding(patient: Patient) -> str | None:
    told, rows = patient.config.get("pad_token_id"), said(patient).get("vocab_size")
    if isinstance(told, int) and isinstance(rows, int) and told >= rows:
        return f"pad_token_id is {told}, outside the vocabulary of {rows}."
    return None


def unpadded(patient: Patient) -> str:
    patient.config["pad_token_id"] = None
    return "It is null now: no token is computed otherwise."


FAULTS = (
    Fault("padding", padding, unpadded),
    Fault("container", refused, contained),
    Fault("dtype", dtype, mend_dtype),
    Fault("rotary settings", rope, one_rope),
)
