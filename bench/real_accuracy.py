"""Zero-shot accuracy on four tasks whose questions are files, by lm-eval.

    python bench/real_accuracy.py MODEL --data DATA [--questions 400]

The tasks are lm-eval's own arc_easy, openbookqa, piqa and winogrande: the same prompts, choices
and metrics: `acc`, and `acc_norm`, which divides a choice's log-likelihood by its length (Winogrande,
whose choices go in front of the text that is judged, has `acc` alone). Only the fields are named as
they are in DATA/zeroshot/*.jsonl. Prints JSON: of each task and metric the mean and its standard error.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from stock import load

QUESTION = {"doc_to_text": "Question: {{query}}\nAnswer:"}
FIELDS = {"doc_to_text": "{{query}}", "doc_to_target": "gold", "doc_to_choice": "{{choices}}"}
BEFORE, AFTER = "sentence.split('_')[0]", "sentence.split('_')[1]"
TASKS = {
    "arc_easy": ("arc-easy_test.jsonl", FIELDS | QUESTION),
    "openbookqa": ("openbookqa_test.jsonl", FIELDS),
    "piqa": ("piqa_val.jsonl", FIELDS | QUESTION),
    "winogrande": (
        "winogrande_val.jsonl",
        {  # the right choice stands before the blank's rest, which is what is judged after either
            "doc_to_text": "{{gold}}",
            "doc_to_target": f"{{{{{AFTER}.strip()}}}}",
            "doc_to_choice": f"{{{{[{BEFORE} + choices[0], {BEFORE} + choices[1]]}}}}",
        },
    ),
}


def task(name: str, data: Path, scratch: str) -> dict:
    """A task as lm-eval takes it."""
    file, fields = TASKS[name]
    metrics = ["acc"] if name == "winogrande" else ["acc", "acc_norm"]
    return {
        "task": f"local_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(data / "zeroshot" / file)},
            "cache_dir": scratch,
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in metrics
        ],
        **fields,
    }


def main(
    model: Path,
    data: Annotated[Path, typer.Option(help="Folder with zeroshot/*.jsonl.")],
    questions: Annotated[int, typer.Option(help="The first so many of each task.")] = 400,
) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # before these are imported
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise SystemExit(
            f"Zero-shot accuracy needs lm-eval ({error}); install it with pip install -e '.[real]'."
        ) from None
    from transformers import AutoTokenizer

    judge = HFLM(load(model), tokenizer=AutoTokenizer.from_pretrained(model), batch_size=8)
    with tempfile.TemporaryDirectory() as scratch:
        tasks = [task(name, data, scratch) for name in TASKS]
        found = simple_evaluate(judge, tasks=tasks, limit=questions)["results"]
    told = {}
    for name in TASKS:
        row = found[f"local_{name}"]
        told[name] = {
            metric: [row[f"{metric},none"], row[f"{metric}_stderr,none"]]
            for metric in ("acc", "acc_norm")
            if f"{metric},none" in row
        }
    print(json.dumps(told))


if __name__ == "__main__":
    typer.run(main)
