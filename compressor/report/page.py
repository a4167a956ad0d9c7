"""report.html: one file that says everything of a result, made from its compression.json.

It loads nothing from elsewhere: style, charts and the picture are in it. What a result has not (no
training, no allocation that was compared) has no section.
"""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from string import Template

from compressor.config.amounts import in_runs, size
from compressor.model.families import FAMILIES
from compressor.model.groups import unit_names
from compressor.report.charts import bars, lines
from compressor.report.drawing import PICTURE
from compressor.text.tokens import describe

PAGE = "report.html"
STYLE = Path(__file__).with_name("page.css")
DOCUMENT = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title><style>$style</style></head>
<body><main><h1>$title</h1>
$body
</main></body></html>
""")
GROUPS = {"ffn": "FFN channels", "attention": "KV groups"}


def write_page(folder: Path, record: dict, loads: Sequence[dict] = ()) -> None:
    """report.html in the folder of a result. loads: which engines take it, as `inspect` says."""
    name = record["source"]["name"]
    parts = [*figures(record), *sections(folder, record, loads)]
    text = DOCUMENT.substitute(
        title=escape(f"{name}, compressed"),
        style=STYLE.read_text(encoding="utf-8"),
        body="\n".join(parts),
    )
    (folder / PAGE).write_text(text, encoding="utf-8")


def figures(record: dict) -> Iterator[str]:
    """What it cost, in a few large numbers."""
    shown = []
    for what, said in (("parameters", "{:,}".format), ("bytes", size)):
        before, after = (record.get(f"{what}_{when}") for when in ("before", "after"))
        if after:
            shown.append((what, said(after), f"{after / before:.1%} of {said(before)}"))
    before, after = record.get("perplexity_before"), record.get("perplexity_after")
    if after:
        shown.append(("perplexity", f"{after:.3f}", f"{after / before:.3f} times {before:.3f}"))
        shown.append(("KL to the source", f"{record['kl']:.4f}", "nats a token"))
        shown.append(("same likeliest token", f"{record['agreement']:.1%}", "as the source"))
    run = record.get("run", {})
    if run:
        seconds = sum(run["seconds"].values())
        shown.append(("time", minutes(seconds), f"{size(run['peak_rss_bytes'])} of memory at most"))
    cells = (f"<div><dt>{a}</dt><dd>{b}</dd><small>{c}</small></div>" for a, b, c in shown)
    yield f'<dl class="figures">{"".join(cells)}</dl>'
    if record.get("evaluation"):
        text = escape(describe(record["evaluation"]))
        yield f"<p>Measured on text that nothing was fitted to: {text}.</p>"
    yield f"<p>Verified: {escape(record.get('verified') or 'no')}.</p>"


def sections(folder: Path, record: dict, loads: Sequence[dict]) -> Iterator[str]:
    for title, parts in (
        ("What stays", widths(record)),
        ("Scores and the cut", picture(folder)),
        ("Allocations compared on held-back text", allocations(record)),
        ("Repair, block by block", repair(record)),
        ("Zeros, block by block", zeros(record)),
        ("Recovery", recovery(record)),
        ("Both models on the same beginning", samples(record)),
        ("What loads it", engines(loads)),
        ("What to know", warnings(record)),
        ("How to make it again", again(record)),
    ):
        if made := "\n".join(parts):
            yield f"<section><h2>{title}</h2>\n{made}</section>"


def widths(record: dict) -> Iterator[str]:
    """How many units of each group stay: a sentence where blocks are alike, else a chart."""
    if "plan" not in record:
        return
    blocks, about = record["plan"]["blocks"], record["plan"]["about"]
    for group, name in names(record).items():
        pairs = [
            (len(kept[group]), w[group]) for kept, w in zip(blocks, about["units"], strict=True)
        ]
        counts = {f"{kept:,} of {whole:,}" for kept, whole in pairs if whole}
        if len(counts) == 1:
            yield f"<p>{name}: {counts.pop()} in every block that has any.</p>"
        elif counts:
            yield bars(
                {name: [100 * k / w if w else None for k, w in pairs]}, "percent that stays", 100
            )
    if about.get("dropped"):
        yield f"<p>Whole blocks that went: {in_runs(about['dropped'])}, counted from 0.</p>"
    if hidden := about.get("hidden"):
        yield f"<p>Channels of the residual stream: {len(hidden['channels'])} of {hidden['of']}.</p>"


def names(record: dict) -> dict[str, str]:
    return unit_names(FAMILIES[record["container"]]) if "container" in record else GROUPS


def picture(folder: Path) -> Iterator[str]:
    if (folder / PICTURE).exists():
        data = base64.b64encode((folder / PICTURE).read_bytes()).decode()
        said = "Scores of the units of every block, and where they are cut"
        yield f'<div class="wide"><img alt="{said}" src="data:image/png;base64,{data}"></div>'


def allocations(record: dict) -> Iterator[str]:
    held = record.get("plan", {}).get("about", {}).get("held_back")
    if held:
        rows = [
            (
                row["allocation"] + " (taken)" * (row["allocation"] == held["taken"]),
                f"{row['loss']:.4f}",
            )
            for row in held["rows"]
        ]
        yield table(("widths by", "loss in nats a token"), rows)


def repair(record: dict) -> Iterator[str]:
    """What the closed form and the training left of the error on held-back sequences."""
    blocks = [block["steps"] for block in (record.get("repair") or {}).get("blocks", [])]
    if not blocks:
        return
    for step in ("attention", "ffn"):
        found = [block.get(step, {}) for block in blocks]
        pairs = {when: [one.get(when) for one in found] for when in ("before", "after")}
        if any(pairs["before"]):
            name = names(record)[step]
            said = {f"{name}, {when} the refit": values for when, values in pairs.items()}
            yield bars(said, "held-back error, a share of the target's energy")
    trained = [block.get("refine") for block in blocks]
    if any(trained):
        losses = [(one["after"], one["losses"][0]) if one else (None, 0) for one in trained]
        left = [100 * after / before if before else None for after, before in losses]
        yield bars({"loss after the training of a block": left}, "percent of before", 100)


def zeros(record: dict) -> Iterator[str]:
    """Of `sparsify`: how many weights of each block are zero, and BESA's error of its output."""
    if (told := record.get("sparsity")) is None:
        return
    total = sum(told["weights"].values())
    share = [100 * sum(block["zeros"].values()) / total for block in told["blocks"]]
    yield bars({"weights that are zero": share}, "percent")
    errors = [block["error"] for block in told["blocks"]]
    if any(errors):
        yield bars({"error of the block's output": errors}, "relative to its energy")


def recovery(record: dict) -> Iterator[str]:
    told = record.get("recovery")
    if not told:
        return
    settings = told["settings"]
    kept = "kept" if told["kept"] else "given up, since it made the result no better"
    yield f"<p>{settings['steps']} steps of {escape(settings['method'])}, {kept}.</p>"
    losses = told.get("losses") or []
    if len(losses) > 1:
        yield lines(
            {"loss of a step": losses}, "nats a token", [str(i + 1) for i in range(len(losses))]
        )


def samples(record: dict) -> Iterator[str]:
    run = record.get("run", {})
    rows = [(s["prompt"], s["before"], s["after"]) for s in run.get("samples", [])]
    if rows:
        yield table(("beginning", "source", "result"), rows, "cells samples")
    elif run.get("no_samples"):
        yield f"<p>{escape(run['no_samples'])}</p>"


def engines(loads: Sequence[dict]) -> Iterator[str]:
    words = {True: "yes", False: "no", None: "unknown"}
    rows = [(r["target"], words[r["loads"]], r["because"], r["how"]) for r in loads]
    if rows:
        yield table(("engine", "loads", "because", "by"), rows, "cells")


def warnings(record: dict) -> Iterator[str]:
    told = record.get("run", {}).get("warnings", [])
    if told:
        yield f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in told)}</ul>"


def again(record: dict) -> Iterator[str]:
    run = record.get("run", {})
    if run:
        yield f"<pre>{escape(run['command'])}</pre>"
        yield table(("stage", "seconds"), [(n, f"{s:.1f}") for n, s in run["seconds"].items()])
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    known = escape(f"compressor {record['compressor']}, {versions}")
    yield f"<p>{known}. All settings are in compression.json.</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table; of kind `cells` a narrow screen shows its cells one below the other, each by its head."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(cell, head, row))}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><tr>{top}</tr>{body}</table></div>'


def cell(head: str, said: str) -> str:
    return f'<td data-head="{escape(head)}">{escape(said)}</td>'


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
