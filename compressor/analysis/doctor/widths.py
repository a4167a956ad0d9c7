"""Faults of the config's widths: it says others than the tensors have. The tensors are believed."""

from collections.abc import Callable
from dataclasses import dataclass

from compressor.analysis.doctor.fault import Fault, Patient
from compressor.analysis.doctor.tensors import per_block_lists, said
from compressor.analysis.inspection.disagreements import span
from compressor.errors import InputError
from compressor.model.per_layer import KEY, in_every_block
from compressor.model.widths import BlockWidths, block_widths


def widths(patient: Patient) -> list[BlockWidths]:
    """Of every block, with heads of one channel."""
    numbers = range(len(patient.numbers()))
    return [block_widths(patient.block(number), patient.family, 1) for number in numbers]


def put(patient: Patient, key: str, values: list[int], whole: int | None = None) -> None:
    """Have config.json say a width of every block: once, or of each where they differ.

    whole: what it says for all then; by default the widest.
    """
    family, entries = patient.family, dict(patient.config.get(KEY) or {})
    alike = len({*values}) == 1
    for block, value in enumerate(values):
        entry = {name: n for name, n in entries.pop(str(block), {}).items() if name != key}
        if not alike:
            entry[key] = value
        if entry:
            entries[str(block)] = entry
    patient.config[family.spelled(patient.config, key)] = (not alike and whole) or max(values)
    patient.config.pop(KEY, None)
    if entries:
        patient.config[KEY] = entries


# -- numbers of the whole model -------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """A setting of the whole model: what the tensors have of it, and what changes with it."""

    key: str
    there: Callable[[Patient], int]
    follow: Callable[[Patient, int], None] = lambda patient, value: None

    def seen(self, patient: Patient) -> str | None:
        told, there = said(patient).get(self.key), self.there(patient)
        if told == there:
            return None
        return f"config.json says {self.key} {told}, and the tensors have {there}."

    def mend(self, patient: Patient) -> str:
        value = self.there(patient)
        self.follow(patient, value)
        patient.config[patient.family.spelled(patient.config, self.key)] = value
        return f"{self.key} is {value} now."


def hidden(patient: Patient) -> int:
    found = {each.hidden for each in widths(patient)}
    if len(found) > 1:
        raise InputError(
            f"{patient.path} cannot be mended. Its blocks read {span([*found])} channels, and every "
            "class has one hidden size."
        )
    return found.pop()


def keep_heads(patient: Patient, value: int) -> None:
    """The channels of a head are no longer hidden size / heads."""
    told, family = said(patient), patient.family
    if family.heads_fixed:
        raise InputError(
            f"The class of {family.model_type} has hidden size / heads channels a head, always, and how "
            "many heads are left cannot be seen."
        )
    implied = told.get("hidden_size", 0) // told[family.heads_key]
    patient.config["head_dim"] = told.get("head_dim") or implied


def rows(patient: Patient) -> int:
    """Of the embedding, and of the head, which have to be as many."""
    counts = {
        name: patient.tensors[name].shape[0]
        for name in (patient.family.embedding, patient.family.head)
        if name in patient.tensors
    }
    if len({*counts.values()}) > 1:
        shown = " and ".join(f"{name} has {count} rows" for name, count in counts.items())
        raise InputError(f"{patient.path} cannot be mended. {shown}, and every class has as many.")
    return next(iter(counts.values()), 0)


def shorten(patient: Patient, blocks: int) -> None:
    """What is said of every block, of fewer."""
    for key, values in per_block_lists(patient).items():
        if len(values) == blocks:
            continue
        if len({*map(str, values)}) > 1 or blocks > len(values):
            raise InputError(
                f"{key} says what each of {len(values)} blocks is, and which of them these are is not "
                f"known; give {key} of {blocks} in a copy of config.json."
            )
        patient.config[key] = values[:blocks]
    if entries := patient.config.get(KEY):
        patient.config[KEY] = {n: entry for n, entry in entries.items() if int(n) < blocks}


def count(patient: Patient) -> int:
    return len(patient.numbers())


# -- channels of the FFN --------------------------------------------------------------------------


def ffn(patient: Patient) -> str | None:
    key = patient.family.ffn_width_key
    there = [each.ffn for each in widths(patient)]
    told = in_every_block(said(patient), key, len(there))
    return (
        None
        if told == there
        else f"config.json says {key} {span(told)}, the tensors {span(there)}."
    )


def mend_ffn(patient: Patient) -> str:
    family, there = patient.family, [each.ffn for each in widths(patient)]
    if family.ffn_fixed:
        raise InputError(
            f"The class of {family.model_type} has {family.ffn_per_hidden} x hidden channels, always."
        )
    put(patient, family.ffn_width_key, there)
    return f"{family.ffn_width_key} is {span(there)} now."


SIZES = (
    Size("num_hidden_layers", count, shorten),
    Size("vocab_size", rows),
    Size("hidden_size", hidden, keep_heads),
)
FAULTS = (
    *(Fault(each.key, each.seen, each.mend) for each in SIZES),
    Fault("FFN width", ffn, mend_ffn),
)
