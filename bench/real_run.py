"""One run of `make real`: the command, in a process as a user starts it, and a judge in another."""

import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from measure import printed
from real_grid import Run
from stock import CALIBRATION

from compressor.writing.record import RECORD, read_record

HERE = Path(__file__).parent
# `besa_parity` is an option of Python alone; this says what `compressor sparsify --json` would.
PARITY = """
import json, sys
from compressor.config.job import sparsify_config
from compressor.job.compress import run_job
from compressor.job.progress import Lines
source, dest, text, length, sparsity = sys.argv[1:]
texts = {"calibration": text, "length": int(length), "evaluation": "none"}
options = {"sparsity": float(sparsity), "besa_parity": True, "overwrite": True}
config = sparsify_config(source, dest, **texts, **options)
print(json.dumps(run_job(config, Lines(True))[0].told()))
"""


class Failed(Exception):
    """A run that gave nothing; the last line that it printed."""


@dataclass(frozen=True)
class Protocol:
    """What is calibrated on, and what is judged on. Figures compare only where it is the same."""

    samples: int  # windows of the calibration text
    tokens: int  # of each of those
    counts: tuple[int, ...]  # windows of WikiText-2 that are judged
    part: int  # windows of the other texts
    length: int  # tokens of a window that is judged
    questions: int  # of each zero-shot task

    def __str__(self):
        judged = " ".join(map(str, self.counts))
        return (
            f"calibrated on {self.samples} x {self.tokens} tokens; judged on {judged} windows of "
            f"{self.length}, {self.part} of other texts, {self.questions} questions a task"
        )


def ran(command: list) -> str:
    """What a command prints."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise Failed(said[-1] if said else f"exit code {done.returncode}, and nothing was said")
    return done.stdout


def fresh(script: str, *arguments) -> dict:
    """What a script of this folder finds, in a process of its own."""
    return json.loads(ran([sys.executable, HERE / f"{script}.py", *arguments]).splitlines()[-1])


def judged(folder: Path, dense: Path | None, data: Path, protocol: Protocol) -> dict:
    """Perplexities of a folder and its distance from the dense model, by transformers alone."""
    counts = [f"--windows={count}" for count in protocol.counts]
    how = [*counts, f"--part={protocol.part}", f"--length={protocol.length}"]
    how += [f"--dense={dense}"] if dense else []
    return fresh("real_judge", folder, f"--data={data}", *how)


def accuracy(folder: Path, data: Path, protocol: Protocol) -> dict:
    how = f"--data={data}", f"--questions={protocol.questions}"
    return {"accuracy": fresh("real_accuracy", folder, *how)}


def forward(source: Path, data: Path, protocol: Protocol) -> float:
    """Processor seconds of a plain forward of the tokens calibrated on, by a quarter of them."""
    some = max(1, protocol.samples // 4)
    size = f"--windows={some}", f"--length={protocol.tokens}"
    found = fresh("real_forward", source, data / CALIBRATION, *size)
    return found["seconds"] * protocol.samples / some


def of_processes() -> float:
    """Processor seconds of this process, which waits, and of all that it has waited for."""
    return sum(os.times()[:4])


def commit() -> str | None:
    return printed(["git", "-C", str(HERE), "describe", "--always", "--dirty"])


def place(run: Run, work: Path, protocol: Protocol) -> Path:
    """Where the results of a run lie until all of them are judged; another run's are elsewhere."""
    digest = zlib.crc32(f"{run} {protocol}".encode())
    return work / f"{run.name.replace(' ', '-').replace(',', '')}-{digest:08x}"


def note_of(dest: Path) -> Path:
    """What a job said, beside its results: they are not made again while both are there."""
    return dest.with_name(dest.name + ".json")


def calibration(run: Run, source: Path, dest: Path, data: Path, protocol: Protocol) -> str:
    """What `--calibration` takes; a text of the model's own is written first, once."""
    if run.text == "own":
        file = dest.with_name(f"{source.name}.jsonl")
        if not file.exists():
            size = f"--tokens={protocol.samples * protocol.tokens}", f"--length={protocol.tokens}"
            ran([command_of("compressor"), "generate", source, file, *size, "--quiet"])
        return str(file)
    first = run.draw * protocol.samples
    return run.text or f"{data / CALIBRATION}[{first}:{first + protocol.samples}]"


def command_of(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def make(run: Run, source: Path, dest: Path, data: Path, protocol: Protocol) -> dict:
    """What the command's own JSON says of its job, and what it took; made once."""
    note = note_of(dest)
    if note.exists() and dest.exists():
        return json.loads(note.read_text())
    dest.parent.mkdir(parents=True, exist_ok=True)
    text = calibration(run, source, dest, data, protocol)
    plain = forward(source, data, protocol)
    if run.job == "parity":
        zeros = f"{1 - run.shares[0]:g}"
        command = [sys.executable, "-c", PARITY, source, dest, text, protocol.tokens, zeros]
    else:
        name, *arguments = run.command(str(source), str(dest), text, protocol.tokens)
        command = [command_of(name), *arguments]
    begin, before = time.perf_counter(), of_processes()
    told = json.loads(ran(command))
    wall, processor = time.perf_counter() - begin, of_processes() - before
    told = told[0] if isinstance(told, list) else told
    about = {
        "seconds": told["seconds"],  # by stage, of the whole job
        "wall": wall,
        "processor": processor,  # seconds of all its threads
        "results": len(run.shares),  # of the job, which took that long for all of them
        "forward": plain,
        "forwards": processor / plain,
        "peak_rss_bytes": told["peak_rss_bytes"],
        "commit": commit(),
    }
    note.write_text(json.dumps(about) + "\n")
    return about


def results_of(run: Run, dest: Path) -> Iterator[tuple[float, Path, dict]]:
    """The results of a run: the share asked for, the folder, and the share that its record tells."""
    for folder in [dest] if (dest / RECORD).exists() else sorted(dest.iterdir()):
        record = read_record(folder)
        if "sparsity" in record:
            yield run.shares[0], folder, {"share": 1 - record["sparsity"]["reached"]}
        else:
            about = record["plan"]["about"]
            yield about["asked"]["value"], folder, {"share": about["keep_blocks_reached"]}
