"""Processor seconds of a plain forward with logits of the calibration tokens: the clock of `make real`.

    python bench/real_forward.py MODEL TEXT --windows 128 --length 512

Stock transformers in float32, four windows at a time. Loading does not count, nor does a first
window, which warms up. Prints JSON.
"""

import json
import sys
import time
from pathlib import Path

import typer

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from stock import load, logits_of, windows

BATCH = 4


def main(
    model: Path, text: Path, windows_: int = typer.Option(128, "--windows"), length: int = 512
):
    rows = windows(model, text, windows_, length)
    loaded = load(model)
    for _ in logits_of(loaded, rows[:1]):
        pass
    begin = time.process_time()
    for _ in logits_of(loaded, rows, BATCH):
        pass
    print(json.dumps({"tokens": rows.numel(), "seconds": time.process_time() - begin}))


if __name__ == "__main__":
    typer.run(main)
