"""`compressor.kernels` as a library: with torch alone, timed where there is no clone."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compressor.kernels import aot
from compressor.kernels.bench import __main__ as bench
from compressor.kernels.bench.cases import CASES
from compressor.kernels.dispatch import Op

# What the rest of the package needs, and its kernels do not.
WITHOUT = """
import sys
absent = ("accelerate", "peft", "psutil", "rich", "safetensors", "tokenizers", "transformers", "typer")
sys.modules |= dict.fromkeys((*absent, "yaml", "matplotlib"))
"""
EVERY_OP = """
from compressor.kernels import aot, besa_cut, dispatch
from compressor.kernels.bench.cases import CASES
import torch

ran, run = set(), dispatch.Op.run
def recorded(op, backend, arguments):
    ran.add(op.name)
    return run(op, backend, arguments)
dispatch.Op.run = recorded
for family in CASES.values():
    torch.manual_seed(0)
    case = family.case((64, 96), "cpu")
    case.compare(case.providers["ours"](), case.providers["eager"]())
besa_cut.besa_cut(torch.ones(2, 5) / 5, 10)
ops = {op.name for m in aot.kernel_modules() for op in vars(m).values() if isinstance(op, dispatch.Op)}
assert len(ops) > len(CASES) and ran == ops, ops - ran
print(*sorted(m for m in sys.modules if m.partition(".")[0] == "compressor"))
"""


def python(code: str, *arguments, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_"))}
    return subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True)


def test_every_op_runs_with_torch_alone(tmp_path):
    done = python(WITHOUT + EVERY_OP, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    outside = [name for name in done.stdout.split() if not name.startswith("compressor.kernels")]
    assert {*outside} <= {"compressor", "compressor._C"}


TIMES = WITHOUT + "from compressor.kernels.bench.__main__ import main; sys.exit(main())"


def test_a_time_is_kept_and_compared(tmp_path):
    """Whatever pytest would be told where it is called."""
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "--nonsense"\n')
    (tmp_path / "conftest.py").write_text("raise RuntimeError('not ours')\n")
    asked = ("colsum", "--shape", "64x96", "--dtype", "float32")
    done = python(TIMES, *asked, "--benchmark-save=first", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "colsum 64 x 96 float32: ours " in done.stdout
    (kept,) = (tmp_path / ".benchmarks").rglob("*_first.json")
    rows = [each["extra_info"] for each in json.loads(kept.read_text())["benchmarks"]]
    assert [row["provider"] for row in rows] == ["ours", "eager"]
    assert all(row["dtype"] == "float32" and row["seconds"] > 0 for row in rows)
    assert rows[0]["bytes"] == 4 * (64 * 96 + 64 + 96)
    done = python(TIMES, *asked, "--dtype=bfloat16", "--benchmark-compare=0001", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("(0001_fir") == done.stdout.count("(NOW)") == 2
    assert "4 passed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["colsun"], "No op is called 'colsun'; the ops are colsum, taylor, "),
        (["rank", "--dtype", "float8"], "--dtype is 'float8'; rank is timed in bfloat16, float16,"),
        (["eliminate", "--dtype", "float16"], "eliminate is timed in float32, float64."),
        (["rank", "--shape", "64"], "--shape is '64'; it is two sizes, as 4096x11008."),
        (["rank", "--shape", "0x64"], "--shape is '0x64'; it is two sizes"),
        (["rank", "--shape", "2x70000"], "--shape: rank: weight has 70000 columns; at most 65535"),
        (["gate", "--shape", "64x130"], "--shape: gated: group is 128; it must divide x's 130"),
        (["rank", "--device", "tpu"], "--device is 'tpu'; it is cpu or cuda."),
    ],
)
def test_what_cannot_be_timed_is_a_sentence(arguments, sentence, capsys):
    assert bench.main(arguments) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err and len(shown.err.splitlines()) == 1 and not shown.out


def test_a_gpu_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["rank", "--device", "cuda"]) == 2
    assert "torch finds none here" in capsys.readouterr().err


def test_a_missing_benchmark_package_names_its_installation(monkeypatch, capsys):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    assert bench.main(["rank", "--shape", "8x8"]) == 2
    assert "pip install pytest-benchmark" in capsys.readouterr().err


def test_the_help_names_every_op(capsys):
    with pytest.raises(SystemExit, match="0"):
        bench.main(["--help"])
    shown = capsys.readouterr().out
    assert all(op in shown for op in CASES) and "--benchmark-compare" in shown


ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/kernels.md").read_text()
OPS = {op.name: op for m in aot.kernel_modules() for op in vars(m).values() if isinstance(op, Op)}
IN_TABLE = {"ref": "PyTorch", "triton": "Triton"}


@pytest.mark.parametrize("name", sorted({*OPS} - {"gated_backward", "gated_swiglu_backward"}))
def test_the_page_tells_every_op_as_it_is(name):
    """Its backends by its implementations; its defaults by those of its backward, where it has one."""
    shown, last = {"gated": "gate"}.get(name, name), OPS.get(f"{name}_backward", OPS[name])
    shown = shown.removesuffix("_backward")
    sections = [s for s in PAGE.split("\n### ") if f"`{shown}`" in s.splitlines()[0]]
    (told,) = re.findall(r"Backends: (.*?)\.", sections[0])
    files = {"C++": f"csrc/cpu/{shown}.cpp", "CUDA": f"csrc/cuda/{shown}.cu"}
    there = ["ref"] + ["Triton"] * (last.implementations["triton"] is not None)
    there += [each for each, file in files.items() if (ROOT / file).exists()]
    assert told.split(", ") == there
    for row in (line.split("|") for line in PAGE.splitlines() if line.startswith("| `")):
        if f"`{shown}`" in row[1]:
            native = {"cuda": "CUDA", "cpu": "C++"}
            wanted = [IN_TABLE.get(last.defaults[d], native[d]) for d in ("cuda", "cpu")]
            assert [cell.strip() for cell in row[3:5]] == wanted
