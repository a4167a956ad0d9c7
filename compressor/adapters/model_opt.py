"""A search by constraints, called as NVIDIA ModelOpt's `prune` is, which answers from measured cuts.

    small, result = prune(
        model,
        constraints={"params": "60%"},
        config={"data_loader": loader, "checkpoint": "search.safetensors"},
    )

The widths of attention and FFNs are searched: the errors of all cuts of each block are measured once, in
what they are worth to the model's loss, and the plan with the least of them within the bound is taken,
or another that held-back text likes better. Nothing of ModelOpt is imported. What differs: `model` stays
as it is, and the small one is a new module; sizes come from the weights, not from a forward.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.adapters.batches import rows
from compressor.config.choices import ALLOCATIONS
from compressor.config.layouts import UNIFORM
from compressor.config.repair import DEFAULT_REPAIR
from compressor.errors import InputError
from compressor.front.stages import cut, plan, repair, score
from compressor.model.loaded_model import LoadedModel
from compressor.model.source import Source
from compressor.planning.costs import CLOSE, Costs
from compressor.scoring.scores import Scores
from compressor.text.tokens import protocol_of_ids

MODES = [name for name, how in ALLOCATIONS.items() if how.measured]
# The entries of a config, and what they are where nothing is said.
CONFIG: dict[str, Any] = dict.fromkeys(
    ("data_loader", "collect_func", "max_iter_data_loader", "checkpoint", "method")
)
CONFIG |= {"repair": DEFAULT_REPAIR, "layout": UNIFORM, "device": None, "dtype": "auto"}


def prune(
    model: nn.Module,
    mode: str = "measured",
    constraints: Mapping[str, str | float] | None = None,
    dummy_input: Any = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """A smaller model within the constraint, and how it was found.

    mode: what cuts are compared by: `measured` (loss), `exact` (errors of blocks) or `besa` (learned).
    constraints: one bound, of `params` or of `flops` (of a prefill, as `--budget flops` counts them): a
    number, or a share such as "60%". dummy_input: ignored. config: `data_loader`, batches of token ids
    [sequences, tokens] or mappings with `input_ids`, or what `collect_func` makes one of;
    `max_iter_data_loader`, so many batches; `checkpoint`, a file of scores that keeps what was measured,
    and is gone on from; `method`, `repair`, `layout`, `device` and `dtype` as of `compressor.score`,
    `repair` and `cut`.

    result: the `plan`; by constraint its `bound` and what was `reached`; and `candidates`, the plans
    compared by their `loss` on held-back text, of which one was `taken`. InputError for what cannot be,
    before any work, and for a bound that no plan keeps.
    """
    if mode not in MODES:
        raise InputError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}.")
    if unknown := {*(config or {})} - {*CONFIG}:
        raise InputError(
            f"config has no entry {min(unknown)!r}; its entries are {', '.join(CONFIG)}."
        )
    asked, source = CONFIG | dict(config or {}), LoadedModel(model)
    measure, bound = bound_of(constraints or {}, source)
    ids = calibration(asked)
    machine = {name: asked[name] for name in ("device", "dtype")}
    scores = known(asked["checkpoint"], source, ids) or score(
        source, ids, asked["method"], **machine
    )
    options = {name: asked[name] for name in ("repair", "layout")} | {"allocate": mode, **machine}
    for budget in budgets(measure, bound, source):
        found = plan(scores, source, ids, **budget, **options)
        if asked["checkpoint"] is not None:
            scores.save(asked["checkpoint"])
        reached = Costs.of(source, measure).size(found.widths(), measure)
        if reached <= bound:
            small: Any = cut(model, found, layout=asked["layout"])
            small = repair(small, model, ids, asked["repair"], **machine)
            compared = found.about["held_back"]
            return small, {
                "plan": found,
                "constraints": {measure: {"bound": bound, "reached": reached}},
                "taken": compared["taken"],
                "candidates": compared["rows"],
            }
    raise InputError(
        f"No plan keeps within {bound:,.0f} {measure}; the nearest has {reached:,}. Allow more, or "
        "another layout."
    )


def bound_of(constraints: Mapping[str, str | float], source: Source) -> tuple[str, float]:
    """What is counted, and how much of it there may be."""
    if len(constraints) != 1 or not {*constraints} <= {"params", "flops"}:
        raise InputError(
            "constraints has one bound, of `params` or of `flops`, not of "
            f"{', '.join(constraints) or 'nothing'}."
        )
    ((measure, value),) = constraints.items()
    whole = Costs.of(source, measure).total[measure]
    try:
        share = isinstance(value, str) and value.strip().endswith("%")
        bound = float(value.strip().rstrip("%")) / 100 * whole if share else float(value)
    except (TypeError, ValueError):
        bound = 0.0
    if not 0 < bound < whole:
        raise InputError(
            f'The bound of {measure} is {value!r}; it must be a share such as "60%", or a number below '
            f"the model's {whole:,}."
        )
    return measure, bound


def budgets(measure: str, bound: float, source: Source) -> Iterator[dict[str, Any]]:
    """What to ask for until a plan is within the bound: shares of FLOPs are only come near to."""
    if measure == "params":
        yield {"target_params": bound}
        return
    share = bound / Costs.of(source, measure).total[measure]
    for points in (0, 1, 2, 4):
        if (keep := share - points * CLOSE) > 0:
            yield {"keep": keep, "budget": measure}


def calibration(asked: Mapping[str, Any]) -> list[torch.Tensor]:
    if asked["data_loader"] is None:
        raise InputError("Cuts are measured on a text; give config a `data_loader` of token ids.")
    batches = islice(asked["data_loader"], asked["max_iter_data_loader"])
    collect = asked["collect_func"]
    return rows(batches if collect is None else map(collect, batches))


def known(file: str | Path | None, source: Source, ids: list[torch.Tensor]) -> Scores | None:
    """What a former search has measured of this model on this text, if there is such a file."""
    if file is None or not Path(file).exists():
        return None
    scores = Scores.load(file)
    text = (scores.about.get("calibration") or {}).get("sha256")
    same = scores.about.get("fingerprint") == source.fingerprint
    if not same or text != protocol_of_ids(ids)["sha256"]:
        raise InputError(f"{file} is of another model or text; name another `checkpoint`.")
    return scores
