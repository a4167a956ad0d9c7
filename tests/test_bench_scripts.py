"""Every script of bench/ runs from end to end, measures what it was asked, and once only.

Scripts run as `python bench/SCRIPT.py` does, but in this process, where all is imported already.
"""

import csv
import json
import math
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from machine_code import TRITON_CACHE

from compressor import _C
from compressor.evaluation.reference import perplexity
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.text.texts import read_text
from compressor.text.tokens import tokenize

BENCH = Path(__file__).parent.parent / "bench"
SPANS = "--calibration-range 0:8 --evaluation-range 8:12"
# What a measurement of any script passes through.
MEASURING = (
    "compressor.measuring.guard.loss_after",
    "compressor.job.compress.run_job",
    "compressor.scoring.score.score",
    "compressor.writing.cuts.write",
)


@dataclass(frozen=True)
class Case:
    """Arguments of a quick run (MODEL and TEXT stand for files), its one result file, the names of
    all rows there, and the figures above 0 that each row has.
    """

    script: str
    arguments: str
    result: str
    figures: tuple[str, ...]
    rows: tuple[str, ...] = ("0",)
    resumes: bool = False
    slow: bool = False

    @property
    def parameter(self):
        marks = [pytest.mark.slow] if self.slow else []
        return pytest.param(self, marks=marks, id=f"{self.script}{'-slow' * self.slow}")


WHOLE = "llama-6m --samples 2 --length 64"
CASES = (
    Case(
        "quality",
        f"MODEL --text TEXT {SPANS} --method llm-bip --select obs+measured --keep 0.7 --samples 4"
        " --repair none --repair refine --allocate uniform --allocate exact:per-layer",
        "*.csv",
        ("perplexity",),
        ("uniform none", "uniform refine", "exact:per-layer none", "exact:per-layer refine"),
        resumes=True,
    ),
    Case(
        "compare_methods",
        f"MODEL TEXT {SPANS} --probe-range 12:13 --samples 4 --seeds 1 --keep 0.7"
        " --method random --method hywia:fixed:0.5 --recover-steps 1 --recover-batch 2",
        "scores-*.json",
        ("keep 0.7", "0.7, LoRA 1 x 2"),
        ("random 0", "hywia:fixed:0.5 0"),
        resumes=True,
    ),
    Case(
        "compare_allocations",
        f"MODEL TEXT {SPANS} --samples 3 --seeds 1 --keep 0.7",
        "model-*.json",
        tuple(
            f"perplexity/{name}"
            for name in ("besa", "exact", "uniform", "2 KV groups", "besa, own", "exact, own")
        ),
        ("0.7 none 0", "0.7 ridge 0"),
        resumes=True,
    ),
    Case(
        "compare_weights",
        f"MODEL TEXT {SPANS} --samples 2 --seeds 1 --sparsity 0.5"
        " --method magnitude --method 'besa, layer' --method sparsegpt",
        "weights-*.json",
        ("perplexity", "reached"),
        ("magnitude | 0.5 | 0", "besa, layer | 0.5 | 0", "sparsegpt | 0.5 | 0"),
        resumes=True,
    ),
    Case(
        "compare_quantization",
        "MODEL TEXT --evaluation-range 8:12 --group 16 --documents 2 --length 64 --seeds 1",
        "model-group-16.json",
        ("dense", "4-bit", "bits"),
        (
            *("cut, nearest 0", "cut, learned 0"),
            *("zeros, nearest 0", "zeros, learned 0", "zeros, joint 0"),
        ),
        resumes=True,
    ),
    Case(
        "run_besa",
        f"MODEL TEXT {SPANS} --samples 2 --repeats 1",
        "run-besa-cpu-*.json",
        ("faster", "perplexity/ours", "perplexity/published", "decided alike"),
    ),
    Case(
        "besa_step",
        "--width 64 --ffn 96 --tokens 16 --repeats 1 --blocks 2 --samples 2",
        "besa-step-cpu-*.json",
        ("milliseconds/ours", "milliseconds/published", "faster"),
    ),
    Case(
        "run_whole",
        f"{WHOLE} --only-memory",
        "whole-llama-6m-cpu-*.json",
        ("tokens", "peak_rss_bytes", "memory_bound_bytes", "seconds_verified", "stages/score"),
    ),
    Case(
        "run_whole",
        WHOLE,
        "whole-llama-6m-cpu-*.json",
        ("seconds", "seconds_plain_forward", "seconds_copy", "seconds_three", "seconds_one"),
        slow=True,
    ),
    Case(
        "run_ranks",
        "llama-6m --samples 4 --length 64",
        "ranks-llama-6m-2-cpu-*.json",
        ("stages/score/faster", "stages/select/faster", "stages/repair/faster"),
        slow=True,
    ),
    Case(
        "run_spill",
        "llama-6m --samples 4 --length 64 --repeats 1",
        "spill-llama-6m-cpu-*.json",
        ("ways/memory/seconds", "ways/files/ratio", "ways/disk/ratio", "written_bytes"),
        slow=True,
    ),
    Case(
        "run_shapes",
        "llama-6m --blocks 1 --samples 2 --length 64 --whole",
        "shapes-llama-6m-cpu-*.json",
        ("whole/predicted/256 tokens", "whole/measured", "exponents/blocks/select"),
        rows=("llama-6m",),
        slow=True,
    ),
    Case(
        "run_backward",
        f"{WHOLE} --only-streamed",
        "backward-llama-6m-cpu-*.json",
        ("reading_seconds", "streamed/seconds", "streamed/peak_rss_bytes"),
    ),
    Case(
        "run_backward",
        f"{WHOLE} --method llm-bip",
        "backward-llama-6m-llm-bip-cpu-*.json",
        ("streamed/seconds", "ordinary/seconds", "goal_seconds"),
        slow=True,
    ),
    Case(
        "run_backward",
        WHOLE,
        "backward-llama-6m-cpu-*.json",
        ("streamed/seconds", "ordinary/seconds", "ordinary/peak_rss_bytes", "goal_seconds"),
        slow=True,
    ),
)
NUMBER = r"[\d.]+"
PRINTED = {  # script -> a quick run, and what it prints
    "run_elimination": (
        "--width 24 --outputs 16 --tokens 64",
        rf"24 channels, 16 outputs, float32 on cpu \(\d+ threads\): {NUMBER} s, "
        rf"{NUMBER} s of processor time; peak resident memory of the process {NUMBER} GiB\n",
    ),
    "run_repair": (
        "--hidden 16 --width 24 --blocks 2 --tokens 64 --sample 32",
        rf"(\w+ \(16 x (16|24), [12] a block\): sums of 64 tokens {NUMBER} s \(from 32\), \d+ "
        rf"factorisations and refits {NUMBER} s, peak resident memory so far {NUMBER} GiB\n){{3}}"
        rf"a block {NUMBER} s, 2 blocks {NUMBER} h on cpu \(\d+ threads\), sums of float32 numbers\n",
    ),
    "cost_model": (
        "llama-405b --device h200 --devices 8 --repair ridge",
        r"(?s).*8 x h200, 128 x 512 tokens.*llama-405b, ridge( +│ +[\d,.]+)+ │\n.*",
    ),
}
TESTED_BELOW = {"make_checkpoint", "predict", "roofline", "trace"}
OF_HOURS = {"fuzz", "max_memory", "threads"}  # tests/hostile; what needs a machine by itself
OF_ENGINES = {"drafted", "served", "served_once"}  # tests/serving
OF_GPU = {  # tests/test_gpu_script.py
    *("gpu_install", "gpu_report", "gpu_run", "gpu_smoke", "gpu_stages"),
}
OF_REAL = {"real", "real_accuracy", "real_forward", "real_judge", "real_models"}  # tests/yardstick


@pytest.fixture(scope="module")
def model(make_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "model"
    return make_checkpoint(folder, num_hidden_layers=2, intermediate_size=32)


@pytest.fixture
def run(monkeypatch, tmp_path, model, text_file, capsys):
    """Runs a script as its command line would; returns what it prints."""
    names = {"MODEL": model, "TEXT": text_file}
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets its own
    # PYTHONSAFEPATH hides what lies beside a script.
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p).resolve() != BENCH])
    for path in BENCH.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)

    def ran(script: str, arguments: str, *more) -> str:
        file = str(BENCH / f"{script}.py")
        given = [names.get(a, a) for a in shlex.split(arguments)]
        monkeypatch.setattr(sys, "argv", [file, *map(str, [*given, *more])])
        try:
            runpy.run_path(file, run_name="__main__")
        except SystemExit as ended:
            assert not ended.code, ended.code
        assert list(temporary.iterdir()) == []
        return capsys.readouterr().out

    return ran


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """Names of what is called to measure, in the order of the calls."""
    calls = []
    for path in MEASURING:
        module, _, name = path.rpartition(".")
        function = getattr(import_module(module), name)

        def counted(*given, function=function, **options):
            calls.append(function.__name__)
            return function(*given, **options)

        monkeypatch.setattr(path, counted)
    return calls


def rows_of(file: Path) -> dict[str, dict]:
    """The rows of a result file by their names, or by their numbers where they have none."""
    if file.suffix == ".csv":
        with file.open() as lines:
            rows = list(csv.DictReader(lines))
        names = [f"{row['allocate']} {row['repair']}" for row in rows]
        values = [{"perplexity": float(row["perplexity"])} for row in rows]
        assert len({*names}) == len(names)
        return dict(zip(names, values, strict=True))
    found = json.loads(file.read_text())
    rows = found if isinstance(found, list) else [found]
    return rows[0].get("rows") or {str(number): row for number, row in enumerate(rows)}


def numbers(value) -> Iterator[float]:
    """Every number of a row."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


def figure(row: dict, path: str) -> float:
    for name in path.split("/"):
        row = row[name]
    return row


def test_every_script_is_here():
    scripts = {path.stem for path in BENCH.glob("*.py") if "__main__" in path.read_text()}
    elsewhere = TESTED_BELOW | OF_HOURS | OF_ENGINES | OF_GPU | OF_REAL
    assert scripts == {case.script for case in CASES} | {*PRINTED} | elsewhere


@pytest.mark.parametrize("case", [case.parameter for case in CASES])
def test_measures_what_was_asked_once(case, run, measured, tmp_path):
    command = case.script, case.arguments, "--results", tmp_path
    printed = run(*command)
    (file,) = tmp_path.glob(case.result)
    rows = rows_of(file)
    assert {*rows} == {*case.rows}
    for row in rows.values():
        assert all(map(math.isfinite, numbers(row)))
        assert all(figure(row, path) > 0 for path in case.figures)
    if case.resumes:
        assert measured
        measured.clear()
        before = file.read_bytes(), file.stat().st_mtime_ns
        assert run(*command) == printed
        assert (file.read_bytes(), file.stat().st_mtime_ns) == before
        assert not measured
    if case.script == "quality":
        assert file.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.parametrize("script", PRINTED)
def test_prints_what_it_took(script, run):
    arguments, expected = PRINTED[script]
    assert re.fullmatch(expected, run(script, arguments))


def test_a_made_checkpoint_runs(run, tmp_path, text_file):
    run("make_checkpoint", "llama-6m", tmp_path / "made")
    checkpoint = Checkpoint(tmp_path / "made")
    tokens = tokenize(read_text(str(text_file)), checkpoint.tokenizer(), 64, 2)
    found = perplexity(BlockStream(checkpoint), tokens)["perplexity"]
    # Random weights know nothing: all of the vocabulary is about as likely.
    assert found == pytest.approx(checkpoint.config["vocab_size"], rel=0.2)


def test_a_slice_has_the_blocks_it_is_asked_for(run, tmp_path):
    run("make_checkpoint", "llama-6m-1-blocks", tmp_path / "made")
    assert Checkpoint(tmp_path / "made").blocks == 1
    with pytest.raises(AssertionError, match="There is no shape llama-8m; there are llama-6m, "):
        run("make_checkpoint", "llama-8m-1-blocks", tmp_path / "other")


def test_gaps_of_a_trace():
    gaps = runpy.run_path(str(BENCH / "trace.py"))["gaps"]
    busy = [(5, 6), (0, 2), (1, 3), (9, 30), (31, 40)]
    assert gaps((2, 20), busy) == [2, 3]
    assert gaps((20, 50), busy) == [1, 10]
    assert gaps((41, 50), busy) == [9]


@pytest.mark.slow
def test_a_trace(run, tmp_path):
    file = tmp_path / "trace.json"
    printed = run("trace", "llama-6m --samples 4 --length 64", "--trace", file)
    assert all(stage in printed for stage in ("score", "select", "repair"))
    assert json.loads(file.read_text())["traceEvents"]


def test_the_roofline_of_a_result_file(run, tmp_path):
    result = max(BENCH.glob("results/ops-cpu-*.json"))
    run("roofline", "", result, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").stat().st_size > 10_000


@pytest.mark.slow
def test_predictions(tmp_path):
    """In a process of its own: nothing compiles where kernels are interpreted."""
    page = tmp_path / "page.md"
    unset = {"TRITON_INTERPRET", "PYTHONPATH"}
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    done = subprocess.run(
        [sys.executable, str(BENCH / "predict.py"), "--page", str(page)],
        env=environment | {"PYTHONSAFEPATH": "1", "TRITON_CACHE_DIR": TRITON_CACHE},
        capture_output=True,
        text=True,
    )
    if not _C.with_cuda:
        assert done.stderr.startswith("The extension was built without CUDA"), done.stderr
        return
    assert done.returncode == 0, done.stderr
    _, *sections = page.read_text().split("\n## ")
    assert [section.partition("\n")[0] for section in sections] == [
        *("Time", "Instructions", "Triton kernels", "CUDA kernels"),
    ]
    assert all(section.count("\n| ") > 8 for section in sections)
    assert "Expected to fall short" in sections[1] or "No op is expected" in sections[1]
