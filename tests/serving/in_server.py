"""`make serve`: a folder of blocks of their own FFN widths in vLLM's HTTP server, with this package's
plugin, without it, and with neither it nor leave to run the folder's code.
"""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

START = 240  # seconds that a server may take to come up
PLUGINS = "VLLM_PLUGINS"  # names those that are loaded; all where it is not there


def tried(folder: Path, engines: Path) -> Iterator[tuple[str, str | None]]:
    """Every way, and what went wrong with it."""
    known = json.loads(folder.with_suffix(".json").read_text())
    ways: dict[str, tuple[list[str], str | None]] = {
        "plugin": ([], None),
        "flag": (["--trust-remote-code"], "none"),
        "neither": ([], "none"),
    }
    for what, (flags, plugins) in ways.items():
        log = folder.with_suffix(f".{what}.log")
        found = served(folder, engines, flags, plugins, known, log)
        wanted = found == known["greedy"][0]
        if what == "neither":
            wanted = found is None and "trust_remote_code" in log.read_text()
        yield what, None if wanted else f"it gave {found}; see {log}"


def served(
    folder: Path, engines: Path, flags: list[str], plugins: str | None, known: dict, log: Path
) -> list[int] | None:
    """The greedy tokens after the first prompt, over HTTP; None where no server comes up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {} if plugins is None else {PLUGINS: plugins}
    # What `vllm serve` runs; the command itself looks for a distribution called vllm, not vllm-cpu.
    command = [str(engines), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--dtype", "float32"]
    command += ["--max-model-len", "128", "--enforce-eager", "--port", str(port), *flags]
    with log.open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        try:
            return asked(f"http://127.0.0.1:{port}", server, str(folder), known)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def asked(address: str, server: subprocess.Popen, model: str, known: dict) -> list[int] | None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            break
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    else:
        return None
    body = {
        "model": model,
        "prompt": known["prompts"][0],
        "temperature": 0,
        "return_token_ids": True,
    }
    body |= {
        "ignore_eos": True,
        "max_tokens": len(known["greedy"][0]),
        "logit_bias": {str(known["eos"]): -100},
    }
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=START) as answer:
        return json.loads(answer.read())["choices"][0]["token_ids"]
