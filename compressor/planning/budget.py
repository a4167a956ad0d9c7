"""What --budget counts besides parameters: FLOPs, or a table of measured costs.

FLOPs: of the prefill of `CONTEXT` tokens (or of as many as the model has positions), as
`model/work.py` counts them; where blocks attend through different windows, a KV group counts as
the mean of them, rounded down: what is left counts at most a few FLOPs too many. Embedding and norms
cost nothing, the head is not cut.

Table: JSON, in any one unit, such as milliseconds measured on the machine that the result is for:

    {"attention": {"1": 0.21, "8": 0.74}, "ffn": {"128": 0.1, "1024": 0.32, "2816": 0.9}, "other": 1.5}

the cost of a block's attention with so many KV groups, of its FFN with so many channels, and of all
that lies outside the blocks. Between two entries costs lie on the line; below the first one they are
the first one's (what is short of it is hardly quicker), and the last one is the whole block's. Costs
are counted in parts of the whole, `PARTS` of them, rounded up: no plan costs more than is said.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from compressor.config.json_files import read_json
from compressor.errors import InputError
from compressor.model.groups import GROUPS
from compressor.model.source import Source
from compressor.model.widths import model_widths
from compressor.model.work import Step, attended, flops

NO_NUMBER = (TypeError, ValueError, OverflowError)  # what `int` and `float` raise
CONTEXT = 2048
PARTS = 20_000  # few, as the knapsack looks at all sums of them


def flops_of(checkpoint: Source) -> tuple[dict[str, int], int]:
    """FLOPs of a unit of each group in one block, and of the whole model."""
    context = min(CONTEXT, checkpoint.positions or CONTEXT)
    model, step = model_widths(checkpoint), Step(1, context, context)
    attending = [b for b, units in enumerate(checkpoint.block_units) if units["attention"]]
    block, units = model.blocks[attending[0]], checkpoint.block_units[attending[0]]
    query, key_value = (w // units["attention"] for w in (block.query, block.key_value))
    pairs = sum(attended(step, model.blocks[b].window) for b in attending)
    inputs = (1 + block.query_inputs) * query + 2 * key_value
    unit = {
        "attention": 2 * context * block.hidden * inputs + 4 * query * pairs // len(attending),
        "ffn": 2 * context * block.hidden * (block.ffn_inputs + 1),
    }
    head = 2 * model.vocabulary * model.hidden
    return unit, sum(flops(b, step) for b in model.blocks) + head


def table_of(path: str | Path, checkpoint: Source) -> tuple[dict[str, Sequence[int]], int, int]:
    """Costs of 0, 1, .. units of each group, of what is outside the blocks, and of all: in parts.

    InputError for a file that is no table, has costs that are not positive, or ends before the widths
    of the model.
    """
    listed, other = read_table(Path(path))
    costs = {}
    for group, entries in listed.items():
        values = [cost for _, cost in entries]
        if not entries or not all(math.isfinite(c) and c > 0 for c in values) or entries[0][0] < 1:
            raise InputError(f"{path} needs {group} costs above 0, of 1 unit or more.")
        if any(after < before for before, after in pairwise(values)):
            raise InputError(f"{path} has {group} costs that fall where units are added.")
        most = max(units[group] for units in checkpoint.whole.block_units)
        if entries[-1][0] < most:
            raise InputError(
                f"{path} has {group} costs up to {entries[-1][0]} units; the model has {most}."
            )
        costs[group] = [0.0, *(interpolated(entries, n) for n in range(1, most + 1))]
    if not (math.isfinite(other) and other >= 0):
        raise InputError(f"{path} has {other} for `other`; it must be 0 or more.")
    blocks = checkpoint.whole.block_units
    whole = other + sum(costs[g][units[g]] for units in blocks for g in GROUPS)
    if not math.isfinite(whole):
        raise InputError(f"{path} has costs whose sum is too large to be a number.")
    counted: dict[str, Sequence[int]] = {
        g: [math.ceil(c / whole * PARTS) for c in values] for g, values in costs.items()
    }
    return counted, math.ceil(other / whole * PARTS), PARTS


def read_table(path: Path) -> tuple[dict[str, list[tuple[int, float]]], float]:
    """(units, cost) of each group by ascending units, and `other`; InputError says what is wrong."""

    def refuse(what: str) -> InputError:
        return InputError(f"--budget is params, flops or a JSON file of costs, and {path} {what}.")

    try:
        table = read_json(path) if path.exists() else None
    except OSError as error:
        raise refuse(f"cannot be read ({error.strerror})") from error
    except InputError as error:
        raise refuse(
            "cannot be read (Is a directory)" if path.is_dir() else "is not JSON"
        ) from error
    if table is None:
        raise refuse("does not exist")
    wanted = (*GROUPS, "other")
    if not isinstance(table, dict) or (missing := [n for n in wanted if n not in table]):
        lacks = f"lacks {', '.join(missing)}" if isinstance(table, dict) else "holds no object"
        raise refuse(f"{lacks}: it needs an object with {', '.join(wanted)}")
    listed = {}
    for group in GROUPS:
        try:
            listed[group] = sorted((int(n), float(c)) for n, c in table[group].items())
        except (AttributeError, *NO_NUMBER) as error:
            raise refuse(
                f"has for {group} something else than an object of whole numbers of units and their "
                'costs, such as {"1": 0.2, "8": 0.7}'
            ) from error
    try:
        return listed, float(table["other"])
    except NO_NUMBER as error:
        raise refuse(f"has {table['other']!r} for other, which is no number") from error


def interpolated(entries: Sequence[tuple[int, float]], n: int) -> float:
    after = bisect_right(entries, n, key=lambda entry: entry[0])
    if after == 0:
        return entries[0][1]
    (low, least), (high, most) = entries[after - 1], entries[min(after, len(entries) - 1)]
    return least if high == low else least + (most - least) * (n - low) / (high - low)


def identity(budget: str) -> str:
    """params or flops, or the SHA-256 of a table."""
    if budget in ("params", "flops"):
        return budget
    return hashlib.sha256(Path(budget).read_bytes()).hexdigest()
