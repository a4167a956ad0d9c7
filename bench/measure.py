"""What a figure must be read with: the machine, its ceilings, the versions."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from compressor.analysis.estimate.machine import copy_bandwidth, multiply_rate
from compressor.writing.record import versions


def machine(device: str) -> dict:
    """What a figure must be read with: device, versions, commit."""
    root = Path(__file__).parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    name = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if device == "cuda":
        name = torch.cuda.get_device_name()
    return {
        "device": name,
        "copy_bytes_per_second": copy_bandwidth(device),
        "float32_per_second": multiply_rate(device),
        "commit": os.environ.get("COMMIT") or printed(command) or "unknown",
        "versions": versions() | triton_version(),
    }


def found_by(code: str, *arguments) -> dict:
    """What Python code finds in a fresh process: the last line that it prints, as JSON."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def printed(command: list[str]) -> str | None:
    """None where git is not installed, or this is no clone."""
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


def triton_version() -> dict:
    try:
        import triton
    except ImportError:
        return {}
    return {"triton": triton.__version__}
