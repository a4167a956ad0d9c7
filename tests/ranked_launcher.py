"""Starts ranks as torchrun does, by what stands in their environment: processes of a command each, or
of a file of Python and what it is given.

One process imports what all need and forks them, since every import takes seconds. It reads a request a
line (JSON) from its standard input, and answers each with one:

    {"world": 2, "arguments": [[...], [...]], "folder": "...", "trouble": {"rank": 1, "at": 3, ...},
     "environment": {...}}
    {"codes": [0, 0], "errors": ["...", ""]}

trouble: what happens to a rank in its `at`-th sum, its `how`: a signal (SIGSTOP has it hang) or an
error, by its name.
"""

import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path

import matplotlib.figure  # noqa: F401  # this and the two below: what a job imports late
import torch
from transformers.models.llama import modeling_llama  # noqa: F401

from compressor import errors
from compressor.cli.running import run
from compressor.cli.stages import stages
from compressor.job import compress  # noqa: F401
from compressor.model import pulse
from compressor.model.ranks import Ranks
from compressor.recovery import stage  # noqa: F401

pulse.LOST = 6.0  # of a rank that hangs: a minute is long for a test


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def make_trouble(at: int, how: str) -> None:
    """In the at-th sum of this process."""
    all_sum, seen = Ranks.all_sum, []

    def troubled(self, *tensors: torch.Tensor) -> None:
        seen.append(tensors)
        if len(seen) == at:
            if how.startswith("SIG"):
                os.kill(os.getpid(), signal.Signals[how])
            raise getattr(errors, how, RuntimeError)(f"{how} in a sum.")
        all_sum(self, *tensors)

    Ranks.all_sum = troubled


def start(request: dict, rank: int, port: int) -> int:
    """The process of a rank, which ends as one does that was not forked."""
    if child := os.fork():
        return child
    sys.stdin.close()
    for number, name in ((1, "out"), (2, "errors")):
        file = os.open(f"{request['folder']}/{name}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(request["world"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    os.environ |= request["environment"]
    trouble = request.get("trouble")
    if trouble and trouble["rank"] == rank:
        make_trouble(trouble["at"], trouble["how"])
    arguments = request["arguments"][rank]
    if arguments[0].endswith(".py"):
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
        sys.exit(0)
    sys.exit(run(stages, arguments))


def answer(request: dict) -> dict:
    port = free_port()
    children = [start(request, rank, port) for rank in range(request["world"])]
    codes: dict[int, int] = {}
    stopped = (request.get("trouble") or {}).get("how") == "SIGSTOP"
    for child in children:
        if stopped and child == children[request["trouble"]["rank"]]:
            continue
        codes[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if stopped:
        hanging = children[request["trouble"]["rank"]]
        os.kill(hanging, signal.SIGKILL)
        codes[hanging] = os.waitstatus_to_exitcode(os.waitpid(hanging, 0)[1])
    folder = Path(request["folder"])
    return {
        "codes": [codes[child] for child in children],
        "errors": [(folder / f"errors{rank}").read_text() for rank in range(len(children))],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
