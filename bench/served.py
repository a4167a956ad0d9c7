"""How fast engines serve a cut model beside the original: vLLM on the folders, llama.cpp on q8_0 files.

    python bench/served.py SOURCE CUT --engines build/engines/bin/python

Source and cut take turns, each time in a process of its own; medians. Leave the machine idle. Prints a
table and writes RESULTS/served-CUT.json.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

import compressor
from compressor.writing.record import versions

ROOT = Path(__file__).parent.parent
ROUNDS = 3
MEASURED = ("first_token_s", "tokens_per_s", "peak_rss_bytes")


def once(engines: Path, engine: str, model: Path) -> dict:
    """What one process measured."""
    command = [engines, "-W", "ignore", ROOT / "bench/served_once.py", engine, model]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{engine} does not run {model}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(
    source: Path,
    cut: Path,
    engines: Annotated[
        Path, typer.Option(help="The interpreter that has vLLM and xllamacpp.")
    ] = ROOT / "build/engines/bin/python",
    results: Annotated[Path, typer.Option(help="Folder for what was measured.")] = ROOT
    / "bench/results",
) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / f"{folder.name}.gguf" for folder in (source, cut)]
        for folder, file in zip((source, cut), files, strict=True):
            compressor.export(folder, file, "q8_0")
        for engine, models in (("vllm", (source, cut)), ("llama.cpp", files)):
            found = [[once(engines, engine, model) for model in models] for _ in range(ROUNDS)]
            for name, each in zip(("source", "cut"), zip(*found, strict=True), strict=True):
                row = {key: statistics.median(one[key] for one in each) for key in MEASURED}
                rows.append({"engine": engine, "model": name} | row)
    table = Table("engine", "", "first token, ms", "tokens a second", "times the source's", "GB")
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        for row in (before, after):
            table.add_row(
                row["engine"],
                row["model"],
                f"{1000 * row['first_token_s']:.0f}",
                f"{row['tokens_per_s']:.1f}",
                f"{row['tokens_per_s'] / before['tokens_per_s']:.2f}",
                f"{row['peak_rss_bytes'] / 1e9:.2f}",
            )
    Console().print(table)
    told = {"date": str(date.today()), "versions": versions(), "source": source.name, "rows": rows}
    file = results / f"served-{cut.name}.json"
    file.write_text(json.dumps(told | {"cut": cut.name}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
