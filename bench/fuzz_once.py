"""One target of `make fuzz`, which is read again and again.

Importing this has atheris instrument the package, whose coverage guides the search; `fuzz` then never
comes back. What is counted lies in a file, so that a process that dies takes little of it along.
"""

import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import redirect_stderr
from hashlib import sha256
from io import StringIO
from pathlib import Path
from random import Random

import atheris

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests")]

os.environ["TRITON_INTERPRET"] = "1"
import hostile_values  # noqa: E402
import transformers  # noqa: E402  # not instrumented

with (
    redirect_stderr(StringIO()),  # a line for every module
    atheris.instrument_imports(
        include=["compressor"], exclude=["compressor.kernels"], enable_loader_override=False
    ),
):
    import hostile_guard
    import hostile_targets
    from conftest import build_checkpoint

OFTEN = 500  # executions between two times that counts are written
MOST_BYTES = 1 << 16  # of an input
MEMORY = Path("/dev/shm")


class Fuzzed:
    """A target, what was counted of it, and when to stop."""

    def __init__(self, target, folder: Path, seconds: float):
        self.target, self.folder, self.seconds = target, folder, seconds
        self.counts = {"executions": 0, "taken": 0, "refused": 0, "broken": 0, "slowest_s": 0.0}
        self.known: set[str] = set()
        self.work = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        build_checkpoint(self.work / "sound")
        self.place = self.work / "work"
        if target.model:
            shutil.copytree(self.work / "sound", self.place)
        self.place.mkdir(exist_ok=True)

    def begin(self) -> None:
        self.begun, self.before = time.monotonic(), peak()
        self.end = self.begun + self.seconds

    def seeds(self) -> list[bytes]:
        return [*self.target.seeds] or [(self.place / self.target.file).read_bytes()]

    def execute(self, data: bytes) -> None:
        (self.place / self.target.file).write_bytes(data)
        begun = time.process_time()
        try:
            refused = hostile_guard.outcome(self.target.read, self.place)
            self.counts["taken" if refused is None else "refused"] += 1
        except hostile_guard.Broken as error:
            self.counts["broken"] += 1
            self.keep(data, error)
        took = time.process_time() - begun
        self.counts["slowest_s"] = max(self.counts["slowest_s"], round(took, 3))
        self.counts["executions"] += 1
        if self.counts["executions"] % OFTEN == 0 or time.monotonic() > self.end:
            self.write()
        if time.monotonic() > self.end:
            shutil.rmtree(self.work, ignore_errors=True)
            os._exit(0)

    def keep(self, data: bytes, error: BaseException) -> None:
        """The first input of each kind of breaking, with its traceback beside it."""
        frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
        kind = f"{type(error.__cause__).__name__} {frames[-1].filename}:{frames[-1].lineno}"
        if kind in self.known:
            return
        self.known.add(kind)
        place = self.folder / "broken"
        place.mkdir(exist_ok=True)
        name = sha256(data).hexdigest()[:16]
        (place / name).write_bytes(data)
        (place / f"{name}.txt").write_text("".join(traceback.format_exception(error)))

    def write(self) -> None:
        grown = max(0, peak() - self.before)
        told = {"peak_mb": grown >> 20, "seconds": round(time.monotonic() - self.begun, 1)}
        unfinished = self.folder / "counts.unfinished"
        unfinished.write_text(json.dumps(self.counts | told))
        unfinished.replace(self.folder / "counts.json")

    def mutate(self, data: bytes, most: int, seed: int) -> bytes:
        """Half by its structure, half as libFuzzer does."""
        random = Random(seed)
        if random.random() < 0.5:
            return atheris.Mutate(data, most)
        header = self.target.file.endswith(".safetensors")
        return hostile_values.spoiled(data, random, header)[:most]


def peak() -> int:
    """Bytes of memory that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def fuzz(name: str, folder: Path, seconds: float) -> None:
    """Read a target for so long, and end the process.

    The folder keeps, for later runs, the inputs that reached code no other did (`corpus`), those that
    broke something (`broken`), and the counts of this run (`counts.json`).
    """
    logging.disable(logging.CRITICAL)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    fuzzed = Fuzzed(hostile_targets.TARGETS[name], folder, seconds)
    for i, data in enumerate(fuzzed.seeds()):  # what a reader imports is imported here
        (corpus / f"seed-{i}").write_bytes(data)
        (fuzzed.place / fuzzed.target.file).write_bytes(data)
        fuzzed.target.read(fuzzed.place)
    fuzzed.begin()
    options = ["-timeout=0", "-rss_limit_mb=0", "-detect_leaks=0", "-verbosity=0"]
    options += [f"-max_len={MOST_BYTES}", f"-artifact_prefix={folder}/died-"]
    given = [sys.argv[0], str(corpus), *options]
    atheris.Setup(given, fuzzed.execute, custom_mutator=fuzzed.mutate)
    atheris.Fuzz()
