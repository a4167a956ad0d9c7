"""The tables of docs/results.md between its two marks, from what `make real` has measured.

    python docs/make_results.py

A test compares the page with bench/results/real/rows.jsonl, so no figure in it is old.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

from generated import filled
from real_grid import GRID
from real_report import DENSE, peers_of

HERE = Path(__file__).parent
ROWS = HERE.parent / "bench/results/real/rows.jsonl"
PAGE = HERE / "results.md"

WORDS = {"0": "", "1": ", second draw", "2": ", third draw"}
TASKS = {
    "arc_easy": "ARC easy",
    "openbookqa": "OpenBookQA",
    "piqa": "PIQA",
    "winogrande": "Winogrande",
}
COUNTS = ("4", "8", "32")
ACCURACY = "Zero-shot accuracy in percent, ± its standard error (lm-eval, 400 questions a task):"


def named(row: dict) -> str:
    """What a run is called: the options that make it another than the default."""
    name = row["run"].removeprefix("peer ") + WORDS[str(row["draw"])]
    return f"**{name}**" if row["run"] == "default" else name


def times(row: dict, dense: dict, *texts: str) -> str:
    """Times the dense model's perplexity of texts; a dash where one was not judged."""
    values = row["perplexity"]
    shown = (f"{values[t] / dense['perplexity'][t]:.3f}" if t in values else "-" for t in texts)
    return " / ".join(shown)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("| " + " | ".join("---" for _ in lines[0].split("|")[1:-1]) + " |")
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def of_model(model: str, rows: list[dict]) -> str:
    """Both tables of a model: perplexities, and accuracy where any was measured."""
    dense = next(row for row in rows if row["run"] == DENSE)
    order = [DENSE, *dict.fromkeys(run.name for run in GRID)]
    place = {name: at for at, name in enumerate(order)}
    rows = sorted(rows, key=lambda r: (place.get(r["run"], 99), r["draw"], -r["share"]))
    shown = []
    for row in rows:
        if row is dense:
            continue
        what = "zeros" if row["job"] in ("sparsify", "parity") else f"{row['share']:.3f}"
        cells = [named(row), what, f"{row['parameters']:,}", times(row, dense, *COUNTS)]
        cells += [times(row, dense, "c4"), times(row, dense, "tinystories")]
        shown.append([*cells, f"{row['kl']:.3f}", f"{row['top1']:.3f}"])
    for peer in sorted(peers_of(model, [4, 8]), key=lambda r: (-round(r["share"], 2), r["run"])):
        cells = [peer["run"], f"{peer['share']:.3f}", f"{peer['parameters']:,}"]
        shown.append([*cells, times(peer, dense, "4", "8"), "-", "-", "-", "-"])
    head = ("run", "stays", "parameters", "WikiText-2, 4 / 8 / 32 windows", "C4", "TinyStories")
    own = ", ".join(f"{dense['perplexity'][t]:.2f}" for t in (*COUNTS, "c4", "tinystories"))
    text = f"### {model}\n\nDense perplexities, in the order of the columns: {own}.\n\n"
    text += table((*head, "KL", "same token"), shown)
    if any("accuracy" in row for row in rows):
        text += f"\n\n{ACCURACY}\n\n"
        text += table(("run", "stays", *TASKS.values()), map(answers, filter(asked, rows)))
    return text


def asked(row: dict) -> bool:
    return "accuracy" in row


def answers(row: dict) -> list[str]:
    shares = (row["accuracy"][task]["acc"] for task in TASKS)
    return [
        named(row),
        f"{row['share']:.3f}",
        *(f"{100 * a:.1f} ± {100 * e:.1f}" for a, e in shares),
    ]


def read_rows() -> list[dict]:
    return [json.loads(line) for line in ROWS.open()]


def page() -> str:
    rows = read_rows()
    models = dict.fromkeys(row["model"] for row in rows)
    made = [of_model(model, [row for row in rows if row["model"] == model]) for model in models]
    return filled(PAGE, "\n\n".join(made))


if __name__ == "__main__":
    PAGE.write_text(page())
