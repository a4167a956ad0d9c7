"""What is freed goes back to the system, where memory is short."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from pathlib import Path
import torch
from compressor.model.memory import free_at_once
if sys.argv[1] == "at once":
    free_at_once()
def peak():  # KB; `ru_maxrss` would begin with what the process had that has started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
torch.ones(1 << 21)  # the first that is freed: glibc takes others of its size from the heap
begun, kept = peak(), []
for _ in range(40):
    large = [torch.ones(1 << 21) for _ in range(2)]  # 8 MB each
    del large[0]
    kept.append([torch.ones(1 << 11) for _ in range(8)])  # 8 KB each, in the hole
    del large
print(peak() - begun)
"""


def grown(when: str) -> int:
    """KB that the process grows by."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, when], capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_small_tensors_that_stay_do_not_make_the_heap_grow():
    assert grown("at once") < 40_000 < grown("as it is")
