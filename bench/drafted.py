"""How well a cut model drafts for its source: transformers' assisted generation, greedy, on a CPU.

    python bench/drafted.py SOURCE CUT

Prints how many tokens the source takes a step, one of them its own, and its speed with and without the
draft; writes RESULTS/drafted-CUT.json. The text is the source's own in either case, which is checked.
"""

import json
import time
from datetime import date
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from compressor.writing.record import versions

ROOT = Path(__file__).parent.parent
PROMPTS = (
    "The history of the city begins with",
    "To make bread at home, you need",
    "The main difference between a virus and a bacterium is",
    "She opened the door and saw",
)


def generated(source, ids: torch.Tensor, count: int, draft=None) -> tuple[list[int], int, float]:
    """New tokens, the source's forward passes, and seconds."""
    steps: list[int] = []
    hook = source.register_forward_pre_hook(lambda *_: steps.append(1))
    begun = time.perf_counter()
    asked = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0}
    found = source.generate(ids, assistant_model=draft, **asked)
    seconds = time.perf_counter() - begun
    hook.remove()
    return found[0, ids.shape[1] :].tolist(), len(steps), seconds


def main(
    source: Path,
    cut: Path,
    tokens: Annotated[int, typer.Option(help="New ones a prompt.")] = 64,
    results: Annotated[Path, typer.Option(help="Folder for what was measured.")] = ROOT
    / "bench/results",
) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, draft = (
        AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in (source, cut)
    )
    tokenizer = AutoTokenizer.from_pretrained(source)
    rows = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        alone, drafted = (generated(model, ids, tokens, helper) for helper in (None, draft))
        if alone[0] != drafted[0]:
            raise SystemExit(f"With the draft {source} continues {prompt!r} otherwise.")
        count = len(alone[0])
        each = {"tokens_a_step": count / drafted[1]}
        each |= {"alone": count / alone[2], "drafted": count / drafted[2]}
        rows.append({"prompt": prompt, "tokens": count} | each)
    table = Table("prompt", "tokens a step", "tokens a second alone", "drafted")
    for row in rows:
        figures = (f"{row[key]:.2f}" for key in ("tokens_a_step", "alone", "drafted"))
        table.add_row(row["prompt"], *figures)
    Console().print(table)
    told = {"date": str(date.today()), "versions": versions(), "source": source.name, "rows": rows}
    file = results / f"drafted-{cut.name}.json"
    file.write_text(json.dumps(told | {"cut": cut.name}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
