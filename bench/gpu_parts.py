"""The parts of a GPU run, in the order of what matters most: what each runs, and how long at most.

`DEVICE=cpu` has the same commands with the shapes of `TINY`.
"""

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

BENCH = Path(__file__).parent
LIMITS = {1: 480, 2: 240}  # seconds of a whole call
SLOWER = 10  # times as long may all of it take on a CPU

LEFT_OUT = (
    "tests that need no GPU (compilers' reports, sources): make test",
    "torch.compile of all but the largest shapes, for whose compilation there is no time",
    "all blocks of a 7B model and jobs on a 70B model: eight blocks and one step are measured",
    "verification of results, for they are written to be timed",
)


@dataclass(frozen=True)
class Part:
    """One command with a limit in seconds of its own. results: files that it leaves, whose last
    entry is a case.
    """

    name: str
    limit: float
    command: tuple[str, ...]
    results: str = ""


@dataclass(frozen=True)
class Sizes:
    """What the parts are run on."""

    smoke: str
    ops: str
    few_ops: tuple[str, ...]  # those compiled
    tests: tuple[str, ...]
    processes: int
    besa: tuple[tuple[str, str], ...]
    model: str
    jobs: str
    scores: str
    gradients: str


WIDE = "--tokens 2048 --dtype bfloat16"
FULL = Sizes(
    smoke="257x1024,4096x4096",
    ops="all",
    few_ops=("--shapes", "largest"),
    tests=("-m", "gpu and not slow and not breadth", "tests/ops", "tests/model/test_stream.py"),
    processes=12,
    besa=(
        ("besa-7b", f"--width 4096 --ffn 11008 --heads 32 --blocks 32 {WIDE}"),
        ("besa-70b", f"--width 8192 --ffn 28672 --heads 64 --kv-heads 8 --blocks 80 {WIDE}"),
    ),
    model="llama-7b-8-blocks",
    jobs="",  # what the commands do by themselves
    scores="--samples 128 --length 512",
    gradients="--samples 32 --length 512",
)
TINY = Sizes(
    smoke="64x1024",
    ops="tiny",
    few_ops=("--shapes", "tiny", "-k", "colsum"),
    tests=("-k", "cpu-ref", "tests/ops/test_rank.py"),
    processes=1,
    besa=(
        ("besa-7b", "--width 64 --ffn 96 --tokens 16 --blocks 2 --repeats 1 --samples 2"),
        ("besa-70b", "--width 64 --ffn 96 --kv-heads 1 --tokens 16 --repeats 1"),
    ),
    model="llama-6m",
    jobs="--samples 2 --length 64",
    scores="--samples 2 --length 64",
    gradients="--samples 2 --length 64",
)


@dataclass(frozen=True)
class Place:
    """Where a call runs: on which device, where results go, and a folder for what is thrown away."""

    device: str
    out: Path
    work: Path

    @property
    def sizes(self) -> Sizes:
        return TINY if self.device == "cpu" else FULL

    def script(self, name: str, *options: str) -> tuple[str, ...]:
        return (sys.executable, str(BENCH / f"{name}.py"), *options)

    def tests(self, *options: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "pytest", "-q", "-p", "gpu_rows", *options)

    def ops(self, *options: str) -> tuple[str, ...]:
        asked = ("--device", self.device, "--results", str(self.out))
        return self.tests(str(BENCH / "bench_ops.py"), *asked, *options)


def parts_of(call: int, place: Place) -> list[Part]:
    return [installing(place), *(first if call == 1 else second)(place)]


def left_out() -> list[str]:
    """What no part measures or tests."""
    quantised = ["the job that quantises: compressed-tensors is not installed"]
    return [*LEFT_OUT, *(quantised if without_quantization() else [])]


def without_quantization() -> tuple[str, ...]:
    """What leaves out the tests that need a package which is seldom there."""
    return () if find_spec("compressed_tensors") else ("-k", "not quantize")


def installing(place: Place) -> Part:
    target = ("--target", str(place.work / "site")) if place.device == "cpu" else ()
    return Part("install", 150, place.script("gpu_install", *target))


def first(place: Place) -> list[Part]:
    """Right before fast: a figure of a wrong kernel is worth nothing."""
    sizes, device = place.sizes, ("--device", place.device)
    side_by_side = ("-n", str(min(sizes.processes, os.cpu_count() or 1)))
    steps = [
        Part(
            name,
            60,
            place.script("besa_step", *options.split(), *device, "--results", str(place.out)),
            "besa-step-*.json",
        )
        for name, options in sizes.besa
    ]
    return [
        Part("smoke", 60, place.script("gpu_smoke", *device, "--shapes", sizes.smoke)),
        Part("tests", 120, place.tests(*side_by_side, *sizes.tests)),
        Part("ops", 110, place.ops("--shapes", sizes.ops, "--compiled", "no")),
        *steps,
        Part("compile", 120, place.ops(*sizes.few_ops, "--compiled", "only")),
    ]


def second(place: Place) -> list[Part]:
    """Whole jobs on one checkpoint; last the tests of them, which are small and slow to begin."""
    sizes, device = place.sizes, ("--device", place.device)
    made, side_by_side = place.work / "model", ("-n", str(min(9, sizes.processes)))

    def job(name: str, limit: float, *options: str) -> Part:
        command = place.script("gpu_stages", str(made), str(place.work / name), *options, *device)
        return Part(name, limit, (*command, *sizes.jobs.split()))

    def beside_ordinary(name: str, limit: float, text: str) -> Part:
        asked = (sizes.model, "--folder", str(made), "--method", name, *text.split(), *device)
        command = place.script("run_backward", *asked, "--results", str(place.out))
        return Part(name, limit, command, "backward-*.json")

    known = ("--calibration", "stdlib")
    return [
        Part("checkpoint", 45, place.script("make_checkpoint", sizes.model, str(made), *device)),
        job("default", 80, "compress", "--keep", "0.8"),
        job("fast", 40, "compress", "--keep", "0.8", "--fast", *known),
        beside_ordinary("llm-bip", 40, sizes.scores),
        beside_ordinary("hywia", 50, sizes.gradients),
        job("besa", 60, "sparsify", "--sparsity", "0.5", *known),
        Part("jobs", 70, place.tests(*side_by_side, *without_quantization(), "tests/test_gpu.py")),
    ]
