"""`bench/gpu.sh` without a GPU: each part has its end, is told as it was, and takes no other along."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gpu_report
import gpu_run
import psutil
import pytest
from bench_ops import providers_of, shapes_of
from gpu_parts import FULL, LIMITS, Part, Place, parts_of

from compressor.kernels.bench.cases import CASES

ROOT = Path(__file__).parent.parent
PUTS = """
import sys, time
sys.path.insert(0, {bench!r})
from gpu_rows import put
put("first", 0.5)
{then}
"""


def part(name: str, then: str, limit: float = 60) -> Part:
    """A part that puts one case and does something more."""
    return Part(
        name, limit, (sys.executable, "-c", PUTS.format(bench=str(ROOT / "bench"), then=then))
    )


@pytest.fixture
def run(tmp_path) -> gpu_run.Run:
    return gpu_run.Run(Place("cuda", tmp_path, tmp_path), 1, 100, 600)


def test_a_part_that_fails_or_hangs_takes_no_other_along(run, monkeypatch):
    monkeypatch.setattr(gpu_run, "GRACE", 0.5)
    parts = [
        part("exits", "print('no such thing'); sys.exit(3)"),
        part("hangs", "time.sleep(60)", limit=1),
        part("wrong", "put('second', 1, 'failed', why='differs by 3')"),
        part("good", "pass"),
    ]
    ended = gpu_run.run_all(run, parts)
    assert [each.result for each in ended] == ["failed", "timed out", "failed", "ok"]
    assert [each.cases for each in ended] == ["1 ok", "1 ok", "1 ok, 1 failed", "1 ok"]
    assert [each.why for each in ended] == [
        "no such thing",
        "after 1 s",
        "second: differs by 3",
        "",
    ]
    shown = gpu_run.table(ended)
    lines = {line.split()[0]: line for line in shown.splitlines()[1:5]}
    assert "no such thing" in lines["exits"] and "timed out" in lines["hangs"]
    assert "second: differs by 3" in lines["wrong"] and " ok " in lines["good"]
    assert len(shown) < 12_000
    rows = gpu_run.rows_of(run.rows)
    assert [(row["part"], row["name"]) for row in rows][:4] == [
        *(("exits", "first"), ("exits", "exits"), ("hangs", "first"), ("hangs", "hangs")),
    ]


def test_nothing_of_a_part_is_left_when_its_time_is_over(run, tmp_path, monkeypatch):
    """Neither a child, nor a process that does not end when it is told to."""
    monkeypatch.setattr(gpu_run, "GRACE", 0.2)
    then = f"""
import os, signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
time.sleep(60)
"""
    assert run.part(part("stubborn", then, limit=2)).result == "timed out"
    left = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    end = time.monotonic() + 20  # the system takes a moment over a process that it was told to kill
    while any(lives(pid) for pid in left):
        assert time.monotonic() < end
        time.sleep(0.05)


def lives(pid: int) -> bool:
    """Whether the process is there, and not only its entry that nobody has asked for yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_there_is_no_time_for_is_left_out(tmp_path):
    run = gpu_run.Run(Place("cuda", tmp_path, tmp_path), 1, gpu_run.GRACE, 600)
    ended = gpu_run.run_all(run, [part("late", "pass")])
    assert [(each.result, each.why) for each in ended] == [("left out", "no time left")]


def test_a_part_run_again_takes_the_place_of_its_rows(tmp_path):
    for names in (("one", "two"), ("two",)):
        run = gpu_run.Run(Place("cuda", tmp_path, tmp_path), 1, 100, 600)
        gpu_run.run_all(run, [part(name, "pass") for name in names])
    assert [row["part"] for row in gpu_run.rows_of(run.rows)] == ["one", "one", "two", "two"]


def test_told_to_end_it_still_tells(run):
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    ended = gpu_run.run_all(run, [part("long", "time.sleep(60)"), part("next", "pass")])
    timer.join()
    assert [each.result for each in ended] == ["failed", "left out"]


@pytest.mark.parametrize(("code", "rows"), [(0, ["ok"]), (1, ["failed"])])
def test_the_exit_code(code, rows, tmp_path, monkeypatch, capsys):
    only = part("only", f"sys.exit({code})")
    monkeypatch.setattr(gpu_run, "parts_of", lambda *_: [only])
    assert gpu_run.main(["1", "--out", str(tmp_path)]) == code
    assert re.search(rf"^only +\d+  {rows[0]}", capsys.readouterr().out, re.M)


def script(call: int, out: Path, **environment: str) -> subprocess.CompletedProcess:
    """The script itself, where there is no git and no make."""
    tools = out.parent / "tools"
    tools.mkdir()
    for folder in reversed(os.get_exec_path()):
        for tool in Path(folder).glob("*"):
            if tool.name not in ("git", "make"):
                (tools / tool.name).unlink(missing_ok=True)
                (tools / tool.name).symlink_to(tool)
    given = {"PATH": str(tools), "PYTHON": sys.executable, "OUT": str(out), "DEVICE": "cpu"}
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "COMMIT", "PARTS")}
    return subprocess.run(
        [str(ROOT / "bench/gpu.sh"), str(call)],
        env=kept | given | environment,
        capture_output=True,
        text=True,
    )


def test_a_rehearsal_of_one_part(tmp_path):
    """Every op is seen beside its reference; and the commit is what it was told to be."""
    done = script(1, tmp_path / "out", PARTS="smoke", COMMIT="abc")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^smoke +\d+  ok +{len(CASES) + 1} ok$", done.stdout, re.M)
    rows = gpu_run.rows_of(tmp_path / "out/rows-1.jsonl")
    assert {row["name"].split()[0] for row in rows} == {*CASES, "machine", "smoke"}
    assert rows[0]["commit"] == "abc"


def test_a_part_without_enough_time_shows(tmp_path):
    done = script(1, tmp_path / "out", PARTS="smoke", MOST="0.2")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^smoke +\d+  timed out +after 0 s$", done.stdout, re.M)


@pytest.mark.slow
@pytest.mark.parametrize("call", LIMITS)
def test_a_whole_rehearsal(call, tmp_path):
    done = script(call, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = gpu_run.rows_of(tmp_path / f"out/rows-{call}.jsonl")
    place = Place("cpu", tmp_path, tmp_path)
    assert {row["part"] for row in rows} == {each.name for each in parts_of(call, place)}
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) <= 8
    if call == 2:
        staged = {(row["part"], row["name"]) for row in rows if "whole" in row}
        assert staged >= {("default", "select"), ("default", "repair"), ("besa", "prune")}
        assert {row["figures"]["method"] for row in rows if "figures" in row} == {
            "llm-bip",
            "hywia",
        }


LOSES = """
import pytest
@pytest.mark.parametrize("number", range(6))
def test_one(number):
    if number == 2:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if number == 3:
        raise RuntimeError("CUDA error: out of memory")
"""


def test_a_lost_device_ends_one_worker(tmp_path):
    """The others run on, as do the tests that it had still before it."""
    (tmp_path / "test_loses.py").write_text(LOSES)
    rows = tmp_path / "rows.jsonl"
    place = {"PYTHONPATH": str(ROOT / "bench"), "GPU_ROWS": str(rows), "GPU_PART": "tests"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu_rows", "-n", "1", "test_loses.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | place, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found = gpu_run.rows_of(rows)
    assert gpu_run.counted(found) == "4 ok, 2 failed"
    why = {
        row["name"][-2]: row["why"] for row in found if "why" in row and "crashed" not in row["why"]
    }
    assert why.keys() == {"2", "3"} and "illegal memory access" in why["2"]
    assert any("crashed" in row.get("why", "") for row in found)


def test_every_test_of_a_gpu_is_in_a_part():
    marked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "@pytest.mark.gpu\n" in path.read_text()
    }
    given = {name for name in (*FULL.tests, "tests/test_gpu.py") if name.startswith("tests/")}
    assert marked
    assert all(any(Path(file).is_relative_to(name) for name in given) for file in marked)


def test_compiled_ones_are_timed_apart():
    assert shapes_of("taylor", "largest", "cuda") == [(28672, 8192)]
    assert [*providers_of("taylor", "no", "cuda")] == ["ours", "eager"]
    assert [*providers_of("taylor", "only", "cpu")] == ["ours", "compile"]
    assert [*providers_of("taylor", "also", "cuda")] == ["ours", "eager", "compile"]


def timing(provider: str, seconds: float) -> dict:
    figures = {
        "op": "rank",
        "shape": [2, 4],
        "provider": provider,
        "seconds": seconds,
        "bytes": 8e6,
    }
    return {"part": "ops", "name": provider, "seconds": 1, "result": "ok", "figures": figures}


MEASURED = [
    {
        **{"part": "smoke", "name": "machine", "result": "ok", "device": "a GPU", "commit": "abc"},
        **{"copy_bytes_per_second": 4e12, "versions": {"torch": "2.11"}},
    },
    timing("ours", 4e-6),
    timing("eager", 8e-6),
    {"part": "tests", "name": "test_a", "seconds": 1, "result": "failed", "why": "so"},
    {"part": "fast", "name": "score", "seconds": 2.0, "result": "ok", "whole": 8.0},
    {"part": "fast", "name": "draw", "seconds": 1.0, "result": "ok", "whole": 1.0},
    {
        **{"part": "fast", "name": "memory", "seconds": 0, "result": "ok"},
        **{"peak_gpu_bytes": 5e9, "peak_rss_bytes": 2e9, "block_bytes": 4e8},
    },
    {
        **{"part": "hywia", "name": "hywia", "result": "ok"},
        "figures": {"method": "hywia", "ratio": 1.4, "streamed": {"seconds": 3.0}},
    },
    {
        **{"part": "besa-7b", "name": "besa-7b", "result": "ok"},
        "figures": {
            **{"block": "8/16", "milliseconds": {"ours": 2.0, "published": 6.0}, "faster": 3.0},
            "minutes for 32 blocks, 128 sequences": 1.5,
        },
    },
]


def test_the_tables_of_a_run(tmp_path, capsys):
    (tmp_path / "rows-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MEASURED))
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n## Measured\n\nNothing yet.\n")
    gpu_report.main(tmp_path)
    printed = capsys.readouterr().out
    assert "| rank | 2 x 4 | 4.0 | 50 | 2.00 | - | - |" in printed
    assert "| fast | score | 2.0 | 8.0 |" in printed
    assert "| fast | all stages | 3.0 | 9.0 |" in printed
    assert "- hywia: 3.00 s, 1.40 times an ordinary pass\n" in printed
    assert "a step of BESA on 8/16: 2.0 ms, published 6.0 ms; minutes for 32 blocks" in printed
    assert "fast: at most 5.0 GB of the GPU and 2.0 GB of the host's memory; a block" in printed
    assert "Failed, without a figure: tests: test_a." in printed
    gpu_report.main(tmp_path, page)
    assert page.read_text() == f"# Page\n\n## Measured\n\n{printed}"


def test_without_the_part_that_knows_the_machine_no_share_is_told():
    assert "| rank | 2 x 4 | 4.0 | - | 2.00 | - | - |" in gpu_report.report(MEASURED[1:])


def test_the_page_has_a_place_for_them():
    assert gpu_report.HEADING in (ROOT / "docs/gpu.md").read_text()
