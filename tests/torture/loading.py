"""Calls of the system that can be made to fail (`faults.c`), loaded before all else."""

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
LIBRARY = "TORTURE_FAULTS"  # the environment's name for the file that was loaded


def load_first(build: Path) -> None:
    """Start this program anew with the failing calls in it, unless it has them."""
    if LIBRARY in os.environ:
        return
    library = build / "faults.so"
    build.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    both = {"LD_PRELOAD": str(library), LIBRARY: str(library)}
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | both)
