"""An estimate as a terminal shows it."""

import math
from collections.abc import Iterator
from itertools import zip_longest

from rich.table import Table

from compressor.model.groups import GROUPS
from compressor.report.table import equal_runs

NOTE = (
    "A roofline bounds a time from below. Zeros count like any weight: dense kernels store, read and "
    "multiply them."
)
PACKED_NOTE = (
    "Quantised weights count as they are stored, and are read so by fused kernels; transformers unpacks "
    "them all before its first step, and then takes the dense model's memory and time."
)
TIMES = ("roofline", "overhead", "expected", "measured")


def tables(result: dict) -> Iterator[Table | str]:
    """What a terminal shows: one table a model, the comparison, the clock."""
    models = result["models"]
    for model in models:
        yield block_table(model, result["context"])
    if len(models) > 1:
        yield comparison(models, result["context"])
    if "measured" in models[0]:
        yield clock_table(result)
        yield from clock_notes(result)
    yield from (
        f"{role}: {note}" if role else note
        for role, model in zip(roles(result), models, strict=True)
        for note in model["notes"]
    )
    yield from dict.fromkeys(ceilings(model) for model in models)
    yield NOTE
    if any(model["stored"] for model in models):
        yield PACKED_NOTE


def block_table(model: dict, context: int) -> Table:
    """Rows of equal blocks are one row, which gives the figures of each."""
    bits = f", {model['stored']}" if model["stored"] else ""
    table = Table(title=f"{model['path']}  ({model['dtype']}{bits})")
    for column in ("block", "heads/KV", "FFN"):
        table.add_column(column, no_wrap=True)
    columns = (
        ("bytes", "bytes", "B"),
        ("flops_per_token", "FLOPs a token", ""),
        ("kv_bytes_per_token", "KV a token", "B"),
        ("kv_bytes", f"KV at {context}", "B"),
        ("decode_seconds", "decode", "s"),
        ("prefill_seconds", "prefill", "s"),
    )
    for column in ("parameters", *(name for _, name, _ in columns)):
        table.add_column(column, justify="right")

    def costs(row: dict) -> list[str]:
        return [f"{row['parameters']:,}", *(scaled(row[key], unit) for key, _, unit in columns)]

    for name, row in equal_runs(model["parts"]):
        widths = [f"{row['heads']}/{row['kv_heads']}", ffn_of(row)]
        table.add_row(name, *(widths if row["ffn"] else ["", ""]), *costs(row))
    table.add_section()
    table.add_row("all", "", "", *costs(model["total"]))
    bound = {phase: bounds(model, phase) for phase in ("decode", "prefill")}
    table.caption = f"decode is bound by {bound['decode']}, prefill by {bound['prefill']}"
    return table


def ffn_of(row: dict) -> str:
    """The channels of an FFN, or of each of so many experts."""
    return f"{row['experts']} x {row['ffn']}" if row["experts"] else str(row["ffn"])


def bounds(model: dict, phase: str) -> str:
    """What most of a phase's time is bound by."""
    spent = {"memory": 0.0, "compute": 0.0}
    for row in model["parts"]:
        spent[row[f"{phase}_bound"]] += row[f"{phase}_seconds"]
    most = max(spent, key=spent.get)
    return f"{most} ({spent[most] / sum(spent.values()):.0%} of the time)"


def comparison(models: list[dict], context: int) -> Table:
    before, after = (model["total"] for model in models)
    table = Table(title="before and after")
    for column in ("", "before", "after", "after / before"):
        table.add_column(column, justify="left" if not column else "right")
    for key, name, unit in (
        ("parameters", "parameters", ""),
        ("bytes", "bytes", "B"),
        ("flops_per_token", f"FLOPs a token at {context}", ""),
        ("kv_bytes_per_token", "KV cache a token", "B"),
        ("kv_bytes", f"KV cache at {context}", "B"),
        ("decode_seconds", "decode, a step", "s"),
        ("prefill_seconds", f"prefill of {context}", "s"),
    ):
        ratio = f"{after[key] / before[key]:.3f}"
        table.add_row(name, scaled(before[key], unit), scaled(after[key], unit), ratio)
    return table


def clock_table(result: dict) -> Table:
    table = Table(title="predicted and measured on this machine")
    for column in ("", *TIMES, "measured / expected"):
        table.add_column(column, justify="left" if not column else "right")
    for role, model in zip(roles(result), result["models"], strict=True):
        for phase in ("decode", "prefill"):
            row = model["measured"][phase]
            ratio = f"{row['measured_over_expected']:.2f}"
            times = (scaled(row[key], "s") for key in TIMES)
            table.add_row(f"{role} {phase}".strip(), *times, ratio)
    if len(result["models"]) > 1:
        table.add_section()
        for phase in ("decode", "prefill"):
            before, after = (model["measured"][phase] for model in result["models"])
            gains = {key: before[key] / after[key] for key in TIMES}
            ratio = f"{gains['measured'] / gains['expected']:.2f}"
            table.add_row(f"speed-up, {phase}", *(f"{g:.2f}x" for g in gains.values()), ratio)
    return table


def clock_notes(result: dict) -> Iterator[str]:
    """How the measured figures came about."""
    yield (
        "Overhead: the same class and number of blocks with next to no channels. Expected: a decode "
        "step at the rate of products, or a prefill's roofline, and the overhead. "
        f"Decode with a static cache of {result['context']} positions; plain transformers."
    )
    for role, model in zip(roles(result), result["models"], strict=True):
        rate, copied = model["measured"]["product_bandwidth"], model["bandwidth"]
        overhead = model["measured"]["decode"]["overhead"] / model["measured"]["decode"]["measured"]
        yield (
            f"{role or 'decode'}: products of {result['batch']} row(s) read weights at "
            f"{scaled(rate, 'B/s')}, {rate / copied:.0%} of a copy; overhead is {overhead:.0%} of a "
            "decode step."
        )


def ceilings(model: dict) -> str:
    return (
        f"Ceilings: {scaled(model['bandwidth'], 'B/s')}, {scaled(model['peak'], 'FLOP/s')} in "
        f"{model['dtype']}; {model['ceilings']}."
    )


def cost_tables(result: dict) -> Iterator[Table | str]:
    """Costs by width, the groups side by side, and what they are of."""
    about, other = result["about"], result["other"]
    table = Table(title=f"{about['model']}  ({about['dtype']}): {about['phase']}, ms a block")
    for column in ("KV groups", "attention", "FFN channels", "FFN"):
        table.add_column(column, justify="right")
    columns = [[(n, f"{cost:.4g}") for n, cost in result[g].items()] for g in GROUPS]
    for (groups, attention), (channels, ffn) in zip_longest(*columns, fillvalue=("", "")):
        table.add_row(groups, attention, channels, ffn)
    yield table
    whole = other + about["blocks"] * sum([*result[g].values()][-1] for g in GROUPS)
    yield (
        f"Batch {about['batch']}, context {about['context']}: {whole:.4g} ms, of them {other:.4g} ms "
        f"outside the {about['blocks']} blocks; {about['source']}."
    )


def roles(result: dict) -> list[str]:
    return ["before", "after"] if len(result["models"]) > 1 else [""]


def scaled(value: float, unit: str) -> str:
    """Three digits and a decimal prefix: 2.20 GB, 13.1 us, 105 M."""
    if not value:
        return "0"
    power = min(5, max(-3, math.floor(math.log10(value * 1.0005) / 3)))
    number = f"{value / 1000**power:#.3g}".rstrip(".")
    return f"{number} {'num kMGTP'[power + 3].strip()}{unit}".strip()
