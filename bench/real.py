"""Real language models as the yardstick: quality and time of every method, judged by transformers alone.

    python bench/real.py [--only default] [--peer FOLDER]

Runs the grid of `real_grid.py` on the models of `real_models.py`. Every result is judged in a process of
its own (`real_judge.py`); the dense models, the default and `--peer` do the zero-shot tasks, too.
A row of RESULTS/rows.jsonl is written as soon as it is measured, and what stands there is not measured
again; take lines out to measure them anew. Before every job a plain forward of its calibration tokens is
timed, so that its time can be told in forwards: both in seconds of processors, which other work on the
machine changes least. Then all is shown beside other programs.
"""

import importlib.util
import json
import os
import shutil
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from real_accuracy import TASKS
from real_grid import GRID, Run
from real_report import DENSE, accuracies, draw, table
from real_run import Failed, Protocol, accuracy, commit, judged, make, note_of, place, results_of
from stock import CALIBRATION, JUDGED

import compressor
from compressor.writing.record import versions

ROOT = Path(__file__).parent.parent


class Rows:
    """A file of JSON lines, one row each, replaced as a whole: what is there is always complete."""

    def __init__(self, file: Path):
        self.file = file
        self.all = [json.loads(line) for line in file.open()] if file.exists() else []

    def find(self, **known) -> dict | None:
        """The row with these values."""
        return next((row for row in self.all if known.items() <= row.items()), None)

    def add(self, row: dict) -> None:
        self.all.append(row | {"date": str(date.today())})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        partial.write_text("".join(json.dumps(each) + "\n" for each in self.all))
        os.replace(partial, self.file)


@dataclass(frozen=True)
class Yardstick:
    """The models and texts, the rows that stand, and what measures further ones."""

    models: Path
    data: Path
    work: Path
    protocol: Protocol
    rows: Rows
    console: Console

    def identity(self, run: Run) -> dict:
        """What is the same in all rows of a run."""
        about = {"model": run.model, "run": run.name, "draw": run.draw, "job": run.job}
        about |= {"text": run.text, "options": run.options}
        return about | {"protocol": str(self.protocol)}

    def standing(self, run: Run) -> list[dict]:
        """The rows of a run that are measured already."""
        same = self.identity(run)
        return [row for share in run.shares if (row := self.rows.find(**same, asked=share))]

    def judge(self, run: Run, folder: Path, about: dict) -> dict:
        """The row of a folder, written when it is measured."""
        source = self.models / run.model
        row = self.identity(run) | about
        row |= judged(folder, None if folder == source else source, self.data, self.protocol)
        if row["asked"] in run.accuracy and self.protocol.questions:
            row |= accuracy(folder, self.data, self.protocol)
        dense = self.standing(dense_of(run.model)) or [row]
        known = dense[0]["perplexity"]
        row["times_dense"] = {name: v / known[name] for name, v in row["perplexity"].items()}
        self.rows.add({"commit": commit(), "versions": versions()} | row)
        self.console.print(f"{run.model}, {run.name}, draw {run.draw}, {row['asked']:g}: measured")
        return row

    def measure(self, run: Run) -> None:
        """The rows of a run that do not stand yet."""
        known = {row["asked"] for row in self.standing(run)}
        dest = place(run, self.work, self.protocol)
        if known < {*run.shares}:
            about = make(run, self.models / run.model, dest, self.data, self.protocol)
            for asked, folder, reached in results_of(run, dest):
                if asked not in known:
                    self.judge(run, folder, {"asked": asked} | about | reached)
        shutil.rmtree(dest, ignore_errors=True)  # or what an interruption left of it
        note_of(dest).unlink(missing_ok=True)

    def measure_given(self, run: Run, folder: Path) -> None:
        """The row of a folder that no job makes: a dense model, or a peer's result."""
        if self.standing(run):
            return
        source = compressor.inspect(self.models / run.model)
        gone = source["parameters"] - compressor.inspect(folder)["parameters"]
        share = 1 - gone / sum(block["parameters"] for block in source["blocks"])
        self.judge(run, folder, {"asked": run.shares[0], "share": share})


def dense_of(model: str) -> Run:
    """The model itself; the zero-shot tasks are run where those of a result stand beside them."""
    compared = any(run.accuracy for run in GRID if run.model == model)
    return Run(DENSE, shares=(1.0,), model=model, job="none", accuracy=(1.0,) * compared)


def check(models: Path, data: Path, wanted: list[Run], zeroshot: bool) -> None:
    """Everything that the hours to come need is there."""
    names = [CALIBRATION, *JUDGED.values()]
    names += [f"zeroshot/{file}" for file, _ in TASKS.values()] if zeroshot else []
    if missing := [name for name in names if not (data / name).is_file()]:
        raise SystemExit(
            f"{data} lacks {', '.join(missing)}; name the folder of the texts with --data "
            "(make real DATA=FOLDER)."
        )
    for model in sorted({run.model for run in wanted}):
        if not (models / model / "config.json").is_file():
            raise SystemExit(
                f"There is no model {models / model}; python bench/real_models.py {models} gets it."
            )
    if zeroshot and importlib.util.find_spec("lm_eval") is None:
        raise SystemExit(
            "Zero-shot accuracy needs lm-eval, which is not installed; pip install -e '.[real]', or "
            "leave it out with --no-zeroshot."
        )


def main(
    models: Annotated[Path, typer.Option(help="Where the models are.")] = ROOT
    / "build/real/models",
    data: Annotated[Path, typer.Option(help="Where the texts are.")] = ROOT / "../shared/data",
    results: Annotated[Path, typer.Option(help="Folder for what was measured.")] = ROOT
    / "bench/results/real",
    work: Annotated[Path, typer.Option(help="Folder for results until they are judged.")] = ROOT
    / "build/real/work",
    only: Annotated[list[str] | None, typer.Option(help="Runs of the grid, by name.")] = None,
    model: Annotated[str | None, typer.Option(help="Runs of this model alone.")] = None,
    peer: Annotated[Path | None, typer.Option(help="A model that another program cut.")] = None,
    zeroshot: Annotated[bool, typer.Option(help="Run the zero-shot tasks.")] = True,
    samples: int = 128,
    tokens: Annotated[int, typer.Option(help="Of a calibration window.")] = 512,
    windows: Annotated[list[int], typer.Option(help="Of WikiText-2.")] = [4, 8, 32],  # noqa: B006
    part: Annotated[int, typer.Option(help="Windows of the other texts.")] = 8,
    length: Annotated[int, typer.Option(help="Of a window that is judged.")] = 1024,
    questions: Annotated[int, typer.Option(help="Of a zero-shot task.")] = 400,
) -> None:
    names = {run.name for run in GRID}
    if unknown := {*(only or ())} - names:
        raise SystemExit(
            f"There is no run {min(unknown)!r}; those known are {', '.join(sorted(names))}."
        )
    wanted = [run for run in GRID if run.name in (only or names) and model in (None, run.model)]
    if not wanted:
        raise SystemExit(f"No such run is of the model {model!r}; see bench/real_grid.py.")
    check(models, data, wanted, zeroshot)
    protocol = Protocol(samples, tokens, tuple(windows), part, length, questions * zeroshot)
    rows, console = Rows(results / "rows.jsonl"), Console(width=180)
    yardstick = Yardstick(models, data, work, protocol, rows, console)
    of_each, failed = [*dict.fromkeys(run.model for run in wanted)], []
    of_peer = Run(
        f"peer {peer and peer.name}", shares=(1.0,), model=of_each[0], job="peer", accuracy=(1.0,)
    )
    try:
        for each in of_each:
            yardstick.measure_given(dense_of(each), models / each)
        if peer is not None:
            yardstick.measure_given(of_peer, peer)
    except Failed as why:
        raise SystemExit(str(why)) from None
    for run in wanted:
        try:
            yardstick.measure(run)
        except Failed as why:  # the hours of the others are worth having all the same
            failed.append(f"{run.model}, {run.name}, draw {run.draw}: {why}")
            console.print(failed[-1], style="red")
    for each in of_each:
        every = [dense_of(each), *(run for run in (of_peer, *GRID) if run.model == each)]
        show(each, [row for run in every for row in yardstick.standing(run)], results, yardstick)
    if failed:
        raise SystemExit(f"{len(failed)} of the runs gave nothing. {failed[-1]}")


def show(model: str, every: list[dict], results: Path, yardstick: Yardstick) -> None:
    """The tables on the console, the picture beside the rows."""
    protocol, console = yardstick.protocol, yardstick.console
    console.print(table(model, every, protocol.counts, str(protocol)))
    if (zeroshot := accuracies(model, every)) is not None:
        console.print(zeroshot)
    figure = draw(model, every, protocol.counts[0])  # the fewest: peers have those
    figure.savefig(results / f"{model}.png", dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    typer.run(main)
