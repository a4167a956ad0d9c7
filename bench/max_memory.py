"""What --max-memory is kept to: the most resident memory of a job whose activations are 0.54 GB.

    python bench/max_memory.py [4GB 1GB 600MB 400MB]

A random Llama of two blocks, 1,024 wide, and 65,536 tokens: scored, cut and written, a process each.
What a job may have is said beside what it had, with what it foresaw, of which some 460 MB are Python's
and torch's. Then the same job, told nothing, in a control group that the system lets grow no larger.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # before bench/, which has one, too

from conftest import build_checkpoint

from compressor.config.amounts import parse_size, size
from compressor.model.cgroups import ROOT

TOKENS, WIDTH = 65_536, 1024
LIMITS = ("4GB", "1GB", "600MB", "400MB")
TEXT = "The quick brown fox jumps over the lazy dog; 12 boxes, 3 jugs.\n"


GROUPS = ("memory/bench", "memory.limit_in_bytes"), ("bench", "memory.max")


def main(limits: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "max_position_embeddings": 512}
        build_checkpoint(folder / "source", **sizes)
        text = folder / "text.txt"
        text.write_text(TEXT * (TOKENS // len(TEXT) + 1))
        for limit in limits:
            told, peak = measured(folder, text, ["--max-memory", limit])
            print(line(f"--max-memory {limit}", told, peak, parse_size(limit)), flush=True)
        for limit in limits:
            with group_of(parse_size(limit)) as tasks:
                if tasks is None:
                    print("No control group can be made here.")
                    return
                told, peak = measured(folder, text, [], tasks)
                print(line(f"a group of {limit}", told, peak, parse_size(limit)), flush=True)


def line(name: str, told: dict | None, peak: int, limit: float) -> str:
    if told is None:
        return f"{name}: killed by the system"
    foreseen = size(told["forecast"]["memory_bytes"])
    share = f"{peak / limit:.0%} of that; {foreseen} foreseen"
    return f"{name}: at most {size(peak)} resident, {share}"


def measured(
    folder: Path, text: Path, options: list[str], tasks: Path | None = None
) -> tuple[dict | None, int]:
    """What a job tells, None where it was killed, and the most bytes that it had."""
    command = [sys.executable, "-m", "compressor", "compress", str(folder / "source")]
    command += [str(folder / "out"), "--keep", "0.7", "--method", "wanda-sp", "--repair", "none"]
    command += ["--calibration", str(text), "--evaluation", "none", "--no-verify", "--json"]
    command += ["--samples", str(TOKENS // 512), "--overwrite", *options]

    def enter() -> None:
        if tasks is not None:
            tasks.write_text(str(os.getpid()))

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, preexec_fn=enter
    ) as process:
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    killed = os.WIFSIGNALED(status)
    return None if killed else json.loads(said), usage.ru_maxrss << 10


@contextmanager
def group_of(limit: float) -> Iterator[Path | None]:
    """The file by which a process enters a new group of so many bytes; None where none can be made."""
    for name, file in GROUPS:
        folder = ROOT / name
        try:
            folder.mkdir()
            (folder / file).write_text(str(int(limit)))
        except OSError:
            if folder.is_dir():
                folder.rmdir()
            continue
        yield folder / "cgroup.procs"
        folder.rmdir()
        return
    yield None


if __name__ == "__main__":
    main(sys.argv[1:] or [*LIMITS])
