"""Heads: how many there are of how many channels, where config.json and the tensors disagree.

Tensors have the product alone, so 64 channels may be 8 heads of 8 or 4 of 16. What else is known has to
leave one meaning: a norm of q or k, a stored rotation, a config that is right in one of the two numbers.
Where it leaves more, the user says it.
"""

from compressor.analysis.doctor.fault import Fault, Patient
from compressor.analysis.doctor.tensors import said
from compressor.analysis.doctor.widths import put, widths
from compressor.analysis.inspection.disagreements import span
from compressor.errors import InputError
from compressor.model.per_layer import in_every_block

NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")  # of the channels of one head


def told_of(patient: Patient) -> tuple[list[int], list[int], int]:
    """Heads and KV heads of every block, and the channels of a head, as config.json has them."""
    config, family, blocks = said(patient), patient.family, len(patient.numbers())
    heads = in_every_block(config, family.heads_key, blocks)
    groups = in_every_block(config, family.kv_heads_key, blocks)
    size = config.get("head_dim") or config.get("hidden_size", 0) // (config[family.heads_key] or 1)
    return heads, [n or count for n, count in zip(groups, heads, strict=True)], size


def channels(patient: Patient) -> tuple[list[int], list[int]]:
    """Channels of the queries and of the keys of every block."""
    there = widths(patient)
    return [each.query for each in there], [each.key_value for each in there]


def disagree(patient: Patient) -> str | None:
    heads, groups, size = told_of(patient)
    queries, keys = channels(patient)
    if [n * size for n in heads] == queries and [n * size for n in groups] == keys:
        return None
    return (
        f"config.json says {span(heads)} heads and {span(groups)} KV heads of {size} channels, and the "
        f"tensors have {span(queries)} channels of queries and {span(keys)} of keys."
    )


def mend(patient: Patient) -> str:
    family = patient.family
    if family.heads_fixed or family.alibi:
        raise InputError(
            f"The class of {family.model_type} has hidden size / heads channels a head, always, or a "
            "slope for each of its first heads."
        )
    size = head_dim(patient)
    queries, keys = channels(patient)
    heads, groups = [n // size for n in queries], [n // size for n in keys]
    shared = {count // each for count, each in zip(heads, groups, strict=True)}
    if len(shared) > 1:
        raise InputError(
            f"Blocks have {span([*shared])} query heads to a KV head, and every class has one number."
        )
    before, former, _ = told_of(patient)
    if (now := shared.pop()) != (was := before[0] // former[0]):
        patient.notes.append(
            f"Every KV head serves {now} query heads, and config.json said {was}: that is right only if "
            "the tool took as many queries from each."
        )
    patient.config["head_dim"] = size
    # Of blocks of their own numbers the config's is none; the class takes that of the whole model.
    whole = was == now and before[0] >= max(heads)
    put(patient, family.heads_key, heads, before[0] if whole else None)
    put(patient, family.kv_heads_key, groups, former[0] if whole else None)
    return f"They are {span(heads)} heads and {span(groups)} KV heads of {size}."


def head_dim(patient: Patient) -> int:
    """Channels of a head; InputError where there is no meaning that fits, or more than one."""
    queries, keys = channels(patient)
    every = sorted({*queries, *keys})
    if asked := patient.asked.head_dim:
        if not fits(asked, queries, keys):
            raise InputError(f"Heads of {asked} channels (--head-dim) do not make {span(every)}.")
        return asked
    if known := shown_by_tensors(patient):
        if not fits(known, queries, keys):
            raise InputError(
                f"By its tensors a head has {known} channels, and {span(every)} are there."
            )
        return known
    meanings = readings(patient, queries, keys)
    if len(meanings) == 1:
        return meanings.pop()
    if not meanings:
        raise InputError("How many channels a head has is not known; say it with --head-dim.")
    shown = " or ".join(f"{queries[0] // size} heads of {size}" for size in sorted(meanings))
    raise InputError(f"The first block can be {shown}; say which with --head-dim.")


def fits(size: int, queries: list[int], keys: list[int]) -> bool:
    """Whether channels are whole heads of this size, and every KV head serves as many queries."""
    pairs = zip(queries, keys, strict=True)
    return all(q % size == 0 and k % size == 0 and (q // size) % (k // size) == 0 for q, k in pairs)


def shown_by_tensors(patient: Patient) -> int | None:
    """What a norm of one head's channels shows, or the stored rotation of old files."""
    first = patient.block(0)
    norms = (first[name].shape[0] for name in NORMS if name in first)
    return next(norms, patient.rotated if patient.family.llama_like else None)


def readings(patient: Patient, queries: list[int], keys: list[int]) -> set[int]:
    """Sizes of a head by which config.json is right in one number at least: in that size, with another
    number of heads, or in the number of heads, with another size.
    """
    heads, groups, size = told_of(patient)
    meanings = {size} if size and fits(size, queries, keys) else set()
    sizes = {q / n for q, n in zip(queries, heads, strict=True)}
    sizes |= {k / n for k, n in zip(keys, groups, strict=True)}
    other = sizes.pop()
    # A rotation turns pairs of channels.
    if not sizes and other == int(other) and other % 2 == 0 and fits(int(other), queries, keys):
        meanings.add(int(other))
    return meanings


FAULTS = (Fault("heads", disagree, mend),)
