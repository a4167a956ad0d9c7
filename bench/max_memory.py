"""What --max-memory is kept to: the most resident memory of a job whose activations are 0.54 GB.

    python bench/max_memory.py [4GB 1GB 600MB 400MB]

A random Llama of two blocks, 1,024 wide, and 65,536 tokens: scored, cut and written, a process each.
What a job may have is said beside what it had, with what it foresaw, of which about 330 MB are Python's
and torch's.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # before bench/, which has one, too

from conftest import build_checkpoint

from compressor.config.amounts import parse_size, size

TOKENS, WIDTH = 65_536, 1024
LIMITS = ("4GB", "1GB", "600MB", "400MB")
TEXT = "The quick brown fox jumps over the lazy dog; 12 boxes, 3 jugs.\n"


def main(limits: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "max_position_embeddings": 512}
        build_checkpoint(folder / "source", **sizes)
        text = folder / "text.txt"
        text.write_text(TEXT * (TOKENS // len(TEXT) + 1))
        for limit in limits:
            print(measured(folder, text, limit), flush=True)


def measured(folder: Path, text: Path, limit: str) -> str:
    """A job that is allowed so much, in a line."""
    command = [sys.executable, "-m", "compressor", "compress", str(folder / "source")]
    command += [str(folder / limit), "--keep", "0.7", "--method", "wanda-sp", "--repair", "none"]
    command += ["--calibration", str(text), "--evaluation", "none", "--no-verify", "--json"]
    command += ["--samples", str(TOKENS // 512), "--max-memory", limit]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        told = json.loads(process.stdout.read())
        _, _, usage = os.wait4(process.pid, 0)
    peak, foreseen = usage.ru_maxrss << 10, told["forecast"]["memory_bytes"]
    return (
        f"--max-memory {limit}: at most {size(peak)} resident, {peak / parse_size(limit):.0%} of that; "
        f"{size(foreseen)} foreseen"
    )


if __name__ == "__main__":
    main(sys.argv[1:] or [*LIMITS])
