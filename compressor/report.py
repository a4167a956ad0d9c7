"""What a run says about itself: compression.json, the model card, the final table."""

import json
import platform
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

from rich.table import Table

from compressor.calibration import describe
from compressor.drawing import PICTURE
from compressor.families import FAMILIES, Family
from compressor.per_layer import code_of, has_uniform, needs_code

VERSIONED = ("torch", "transformers", "safetensors")


def versions() -> dict[str, str]:
    found = {name: version(name) for name in VERSIONED}
    return {"python": platform.python_version(), **found}


def write_record(folder: Path, record: dict) -> None:
    """compression.json: the plan and everything that is needed to make the same again."""
    text = json.dumps(record, indent=1, sort_keys=False)
    (folder / "compression.json").write_text(text + "\n", encoding="utf-8")


def write_card(folder: Path, result: dict, record: dict) -> None:
    """The model card: what this is, what it cost, how it was made."""
    text = f"""---
base_model: {Path(result["source"]).name}
tags: [pruned]
---
# {Path(result["source"]).name}, compressed to {result["keep_reached"]:.1%}

{result["parameters_after"]:,} of {result["parameters_before"]:,} parameters stay. A dense checkpoint
of the type `{result["container"]}`{how_it_loads(FAMILIES[result["container"]], result["layout"])}

{quality(result, record)}

{how_made(folder, result, record)}"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def quality(result: dict, record: dict) -> str:
    """What the compression cost, measured."""
    before, after = result["perplexity_before"], result["perplexity_after"]
    if after is None:
        return "No perplexity was measured (`--evaluation none`)."
    kl, share = result["kl"], result["agreement"]
    return (
        f"Perplexity {before:.3f} before, {after:.3f} after, on text that nothing was fitted to or "
        f"chosen by: {describe(record['evaluation'])}. The next token's distribution is {kl:.3f} nats "
        f"from the source's (KL divergence), and {share:.1%} of the tokens have the same likeliest one."
    )


def how_made(folder: Path, result: dict, record: dict) -> str:
    """How units were chosen, how what is left was repaired and trained, and the picture."""
    picture = ""
    if (folder / PICTURE).exists():
        picture = f"\n![Block by block: units kept, their scores and the cut]({PICTURE})\n"
    trained = record.get("recovery")
    training = "no recovery followed"
    if trained and trained["kept"]:
        settings, data = trained["settings"], trained["data"]
        training = (
            f"then recovered by {settings['steps']} steps of {settings['method']} (rank "
            f"{settings['rank']}, {settings['batch']} sequences a step) on {data['source']}"
        )
        if result["perplexity_pruned"] is not None:
            training += (
                f"; before this training the perplexity was {result['perplexity_pruned']:.3f}"
            )
    scored = record["plan"]["about"]["scores"]
    units = f"Units were chosen by `{scored['method']}` ({scored['mode']}), seed {scored['seed']}"
    widths = f"widths by `{record['plan']['about']['allocate']}`"
    return f"""{units}, {widths}; {how_repaired(record.get("repair"))}; {training}.
`compression.json` holds the plan and all settings.
{picture}"""


def how_repaired(repair: dict | None) -> str:
    """What of the blocks that stay was changed, and on which text."""
    if repair is None:
        return "what stays is unchanged"
    trained = ""
    if epochs := repair.get("epochs"):
        times = "once" if epochs == 1 else f"{epochs} times"
        trained = f"; then every block was trained toward the source's, {times} over that text"
    text = describe(repair["calibration"])
    return f"what stays was refitted (`--repair {repair['kind']}`) on {text}{trained}"


def how_it_loads(family: Family, layout: str) -> str:
    """The end of a sentence, and the lines of Python that load a result."""
    imports = "    from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    call = '    model = AutoModelForCausalLM.from_pretrained("this folder", dtype="auto"'
    if not needs_code(family, layout):
        return f"; it loads with plain `transformers`:\n\n{imports}{call})"
    first, *others = [f"`{file.name}`" for file in code_of(family)]
    files = f"{first} (with {', '.join(others)})" if others else first
    what = "of which `transformers` has no class."
    closing = ""
    if layout == "per-layer":
        what = "whose blocks have widths of their own."
        closing = """, and what knows one width for all blocks (vLLM's
classes, llama.cpp, 4-bit kernels) does not load it"""
    if layout == "per-layer" and has_uniform(family):
        closing += ". A `uniform` result loads everywhere"
    return f""" {what} {files}, which is
in this folder, builds them; `transformers` runs it only where it is told to:

{imports}{call}, trust_remote_code=True)

Without `trust_remote_code` loading ends with an error{closing}."""


def equal_runs(rows: list[dict]) -> Iterator[tuple[str, dict]]:
    """Rows one after the other that differ in `block` alone, as one: `0-21, each`, and the first."""
    for _, run in groupby(rows, key=lambda row: row | {"block": None}):
        first, *others = run
        name = str(first["block"])
        yield (f"{name}-{others[-1]['block']}, each" if others else name), first


def comparison(result: dict) -> str:
    """The allocations that a result was compared with, a line each; the one taken has a star."""
    found = result["held_back"] or {"rows": []}
    return "\n".join(
        f"{row['allocation']} ({row['attention']} x {row['ffn']}) {row['loss']:.4f}"
        + " *" * (row["allocation"] == found["taken"])
        for row in found["rows"]
    )


def asked(result: dict, kind: str) -> str:
    """` (asked 0.7)` if the result's target was this quantity of the model, else nothing."""
    target = result["asked"]
    if target is None or (target["kind"], target["budget"]) != (kind, "params"):
        return ""
    late = " before 4 bits" if kind == "bytes" and result["quantization"] else ""
    return f" (asked {target['value']:{'g' if 'keep' in kind else ',.0f'}}{late})"


def share_of(target: dict | None) -> str | None:
    """The name of what a budget other than parameters bounds; None without one."""
    if target is None or target["budget"] == "params":
        return None
    counted = "flops" if target["budget"] == "flops" else "costs"
    return f"share of {counted}" + ", blocks only" * (target["kind"] == "keep-blocks")


def share_reached(result: dict, name: str) -> str:
    """The share of a budget in the result that has this one, and what was asked."""
    if share_of(result["asked"]) != name:
        return ""
    return f"{result['budget_reached']:.4f} (asked {result['asked']['value']:g})"


def table(results: list[dict]) -> Table:
    """The final table: a row a measure, a column a result."""
    first = results[0]
    how = f"({first['method']}, {first['mode']})" if first["mode"] else ""
    shown = Table(title=f"{first['source']}  {how}")
    shown.add_column("")
    shown.add_column("before", justify="right")
    for result in results:
        shown.add_column(f"after ({Path(result['dest']).name})", justify="right")

    def row(name: str, before: str, after) -> None:
        shown.add_row(name, before, *(after(r) for r in results))

    row("keep", "", lambda r: f"{r['keep_reached']:.4f}{asked(r, 'keep')}")
    kept = "keep_blocks_reached"
    row("keep, blocks only", "", lambda r: f"{r[kept]:.4f}{asked(r, 'keep-blocks')}")
    for name in dict.fromkeys(share_of(r["asked"]) for r in results):
        if name is not None:
            row(name, "", partial(share_reached, name=name))
    for kind, name in (("params", "parameters"), ("bytes", "bytes")):
        given = f"{first[f'{name}_before']:,}"
        row(name, given, lambda r, k=kind, n=name: f"{r[f'{n}_after']:,}{asked(r, k)}")
    if first["quantization"]:
        row("bits a projection weight", "", lambda r: f"{r['quantization']['bits_per_weight']:.3f}")
    if any(r["held_back"] for r in results):
        row("held-back loss", "", comparison)
    row("type", first["model_type"], lambda r: f"{r['container']} ({r['layout']})")
    if first["perplexity_before"] is not None:
        after = lambda r: f"{r['perplexity_after']:.4f}"  # noqa: E731
        row("perplexity", f"{first['perplexity_before']:.4f}", after)
        if any(r["perplexity_pruned"] != r["perplexity_after"] for r in results) and (
            any(r["recovery"] for r in results)
        ):
            row("perplexity before recovery", "", lambda r: f"{r['perplexity_pruned']:.4f}")
        row("KL to the source, nats a token", "", lambda r: f"{r['kl']:.4f}")
        row("same likeliest token", "", lambda r: f"{r['agreement']:.1%}")
        if first["quantization"]:
            row("perplexity before 4 bits", "", lambda r: f"{r['perplexity_unquantized']:.4f}")
    row("verified", "", lambda r: r["verified"])
    spent = ", ".join(f"{name} {s:.1f}" for name, s in first["seconds"].items())
    shown.caption = (
        f"seconds: {spent} (all {sum(first['seconds'].values()):.1f}); "
        f"peak memory {first['peak_rss_bytes'] / 1e6:,.0f} MB"
    )
    return shown


def warnings(results: list[dict]) -> list[str]:
    """What went otherwise than hoped, each once, and of which result where it is not of all."""
    whose: dict[str, list[str]] = {}
    for result in results:
        for warning in result["warnings"]:
            whose.setdefault(warning, []).append(Path(result["dest"]).name)
    return [
        warning if len(names) == len(results) else f"{', '.join(names)}: {warning}"
        for warning, names in whose.items()
    ]
