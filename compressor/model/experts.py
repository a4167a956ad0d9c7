"""Experts in files and in modules: the same tensors, one by one or one behind the other.

What is read has the names and the form of transformers' modules (`families/experts.py`), whichever form
files have; what is written has the form that was read.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from compressor.errors import InputError
from compressor.model.families import Family
from compressor.model.families.experts import Experts, split
from compressor.model.modules import replaced_forward

if TYPE_CHECKING:
    from compressor.model.source import Source

Entries = dict[str, SimpleNamespace]
Kind = TypeVar("Kind", bound="Source")


def are_stacked(tensors: Mapping[str, object], family: Family) -> bool:
    """Whether files hold experts one behind the other, as modules do."""
    ends = tuple("." + name for name in family.experts.parts) if family.experts else ()
    return any(name.endswith(ends) for name in tensors) if ends else False


def stacked(tensors: Entries, family: Family, count: int, label: str) -> Entries:
    """The header entries by the names of modules; one entry has those of single experts as its `parts`.

    count: the experts of a block, by the config. InputError for one that is missing, too much or of
    another shape or dtype than the others.
    """
    if family.experts is None:
        return tensors
    found, rest = single_experts(tensors, family), {}
    short = {hub: name for name, hub in family.experts.renamed.items()}
    for name, entry in tensors.items():
        prefix, inner = inside(name, family)
        rest[prefix + short.get(inner, inner)] = entry
    for name, parts in found.items():
        if name in tensors:
            raise InputError(
                f"{label} holds {name}, and single experts of it ({first_key(parts)}), so loaders may "
                "read either; remove one of them."
            )
        for part in (key for each in parts.values() for key in each):
            del rest[part]
        rest[name] = whole_stack(name, parts, tensors, family, count, label)
    return rest


def inside(name: str, family: Family) -> tuple[str, str]:
    """A whole name as what is before a block's own names, and that; outside the blocks "" and all."""
    found = re.match(re.escape(family.layers) + r"\.\d+\.", name)
    end = found.end() if found else 0
    return name[:end], name[end:]


def single_experts(tensors: Entries, family: Family) -> dict[str, dict[int, list[str]]]:
    """Of each stacked tensor's whole name, the names of every expert's parts that are there."""
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    patterns = [
        (target, re.compile(re.escape(part).replace(r"\{\}", r"(\d+)")))
        for target, parts in family.experts.parts.items()
        for part in parts
    ]
    for name in tensors:
        prefix, inner = inside(name, family)
        for target, pattern in patterns:
            if there := pattern.fullmatch(inner):
                found[prefix + target][int(there[1])].append(name)
    return found


def first_key(parts: Mapping[int, list[str]]) -> str:
    return parts[min(parts)][0]


def whole_stack(
    name: str,
    parts: Mapping[int, list[str]],
    tensors: Entries,
    family: Family,
    count: int,
    label: str,
) -> SimpleNamespace:
    """The entry of a stacked tensor, of all experts that the config counts."""
    prefix, inner = inside(name, family)
    if extra := [expert for expert in parts if expert >= count]:
        raise InputError(
            f"{label} holds {parts[max(extra)][0]}, but its config counts {count} experts a block "
            f"({family.ffn_width_key}); give a folder whose config is of these weights."
        )

    def named(expert: int) -> list[str]:
        return [prefix + part.format(expert) for part in family.experts.parts[inner]]

    # The first alone, as the config may count any number of them.
    missing = next((n for e in range(count) for n in named(e) if n not in tensors), None)
    if missing is not None:
        others = count * len(named(0)) - sum(map(len, parts.values())) - 1
        more = f" and {others} more like it" if others > 0 else ""
        raise InputError(
            f"{label} lacks the tensor {missing}{more}: its config counts {count} experts a block. "
            "Give a folder that has it."
        )
    names = [named(expert) for expert in range(count)]
    entries = [[tensors[part] for part in each] for each in names]
    flat = [entry for each in entries for entry in each]
    for part, entry in zip((part for each in names for part in each), flat, strict=True):
        like = entries[0][0]
        if len(entry.shape) != 2 or entry.shape[1] != like.shape[1] or entry.dtype != like.dtype:
            raise InputError(
                f"{part} in {label} is {entry.shape} of {entry.dtype}, and {names[0][0]} is "
                f"{like.shape} of {like.dtype}; the experts of a block have one form."
            )
    rows = [sum(entry.shape[0] for entry in each) for each in entries]
    if other := [expert for expert, height in enumerate(rows) if height != rows[0]]:
        raise InputError(
            f"{names[other[0]][0]} in {label} has other rows than {names[0][0]}; experts of a block are "
            "of one width."
        )
    return SimpleNamespace(
        shape=[count, rows[0], flat[0].shape[1]],
        dtype=flat[0].dtype,
        numel=sum(entry.numel for entry in flat),
        begin=0,
        end=sum(entry.end - entry.begin for entry in flat),
        parts=entries,
        file=None,
        rows=None,
        normalised=False,
        transposed=False,
    )


def in_files(name: str, tensor: torch.Tensor, family: Family) -> Iterator[tuple[str, torch.Tensor]]:
    """What files with single experts hold of the tensor of this whole name: views, by their names."""
    prefix, inner = inside(name, family)
    parts = family.experts.parts.get(inner)
    if parts is None:
        yield prefix + family.experts.renamed.get(inner, inner), tensor
        return
    for expert, matrix in enumerate(tensor):
        for part, rows in zip(parts, matrix.chunk(len(parts)), strict=True):
            yield prefix + part.format(expert), rows


def with_units(source: Kind, experts: str | None) -> Kind:
    """The source with the units of the option `experts`: `channels`, or else as it is."""
    return in_channels(source) if experts == "channels" else source


def in_channels(source: Kind) -> Kind:
    """The same mixture with a channel of an expert as the unit of its FFNs."""
    if source.family.experts is None:
        raise InputError(
            f"--experts channels cuts the experts of a mixture, and {source.label} is of the type "
            f"{source.family.model_type}, which has none; leave it out."
        )
    seen = copy(source)
    seen.family = split(source.family)
    for counted in ("block_units", "families"):  # of whole experts
        seen.__dict__.pop(counted, None)
    return seen


@contextmanager
def only_channels(layer: nn.Module, experts: Experts, kept: Sequence[int]) -> Iterator[None]:
    """While open, the experts of `layer` compute with these of their channels alone."""

    def run(module: Any, *args, **named):
        whole = module.down_proj
        left = torch.zeros(len(whole) * whole.shape[2], dtype=whole.dtype, device=whole.device)
        left[torch.as_tensor(kept, dtype=torch.long, device=whole.device)] = 1
        of_each = left.view(len(whole), 1, -1)
        module.down_proj = nn.Parameter(whole.detach() * of_each, requires_grad=False)
        try:
            return type(module).forward(module, *args, **named)
        finally:
            module.down_proj = whole

    with replaced_forward([layer.get_submodule(experts.stack)], run):
        yield


@contextmanager
def only_experts(layer: nn.Module, experts: Experts, kept: Sequence[int]) -> Iterator[None]:
    """While open, the router of `layer` chooses among the kept experts as if there were no others.

    It computes with their rows alone, by its own forward, and what it chooses is told by the numbers
    that the experts have among all. (A router that counts experts by groups computes with all rows.)
    """
    router = layer.get_submodule(experts.router)
    if experts.groups:
        with replaced_forward([router], partial(choose_others, experts, kept)):
            yield
        return
    places = torch.as_tensor(kept, dtype=torch.long)

    def choose(module: nn.Module, hidden: torch.Tensor):
        whole, there = module.weight, places.to(hidden.device)
        module.weight = nn.Parameter(whole.detach()[there], requires_grad=False)
        try:
            logits, weights, chosen = type(module).forward(module, hidden)
        finally:
            module.weight = whole
        return logits, weights, there[chosen]

    with replaced_forward([router], choose):
        yield


def choose_others(experts: Experts, kept: Sequence[int], router: Any, hidden: torch.Tensor):
    """What a router gives that never chooses another than the kept experts: the bias by which it
    chooses or, without one, a channel more of what it reads, says so.
    """
    whole, width = router.weight, router.hidden_dim
    rows = len(whole)
    closed = torch.full((rows,), -torch.inf, dtype=torch.float32, device=hidden.device)
    closed[torch.as_tensor(kept, dtype=torch.long, device=hidden.device)] = 0
    bias = experts.bias and getattr(router, experts.bias)
    try:
        if experts.bias:
            setattr(router, experts.bias, bias + closed)
        else:
            wider = torch.cat((whole.detach(), closed.to(whole.dtype)[:, None]), 1)
            router.weight = nn.Parameter(wider, requires_grad=False)
            router.hidden_dim = width + 1
            hidden = torch.cat((hidden, torch.ones_like(hidden[..., :1])), -1)
        return type(router).forward(router, hidden)
    finally:
        router.weight, router.hidden_dim = whole, width
        if experts.bias:
            setattr(router, experts.bias, bias)


def inner_of(stack: Any, expert: int, x: torch.Tensor) -> torch.Tensor:
    """What the output projection of an expert reads of tokens x [tokens, hidden]."""
    gate, up = nn.functional.linear(x, stack.gate_up_proj[expert]).chunk(2, -1)
    return stack.act_fn(gate) * up


@torch.no_grad()
def norms_of(stack: Any, expert: int, x: torch.Tensor) -> torch.Tensor:
    """The size of what an expert gives of every token, [tokens] float64."""
    given = nn.functional.linear(inner_of(stack, expert, x), stack.down_proj[expert])
    return given.double().square().sum(-1).sqrt()
