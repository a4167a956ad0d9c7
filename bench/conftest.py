"""The table at the end of a benchmark, and its result file."""

import json
from datetime import date
from pathlib import Path

import pytest
import torch
from measure import machine
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
ROWS = pytest.StashKey[list]()


def pytest_addoption(parser):
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser.addoption("--results", type=Path, default=RESULTS, help="Folder for what was measured.")
    parser.addoption("--device", default=here, choices=("cpu", "cuda"))
    parser.addoption("--shapes", default="all", choices=("all", "largest", "tiny"))
    parser.addoption("--compiled", default="also", choices=("also", "no", "only"))


def pytest_configure(config):
    config.stash[ROWS] = []


@pytest.fixture
def device(request) -> str:
    return request.config.option.device


@pytest.fixture
def record_row(request):
    """Adds one timing to the result file, and to what a GPU run puts of this test."""

    def record(row: dict) -> None:
        request.config.stash[ROWS].append(row)
        request.node.user_properties.append(("figures", {"figures": row}))

    return record


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    rows = config.stash[ROWS]
    if not rows:
        return
    failed = [report.nodeid for report in terminalreporter.stats.get("failed", [])]
    if failed:
        terminalreporter.write_line(f"Without a figure, since it failed: {failed}", red=True)
    device = config.option.device
    found = machine(device)
    Console(width=110).print(table(rows, found))
    if config.option.keyword or config.option.compiled == "only":
        return  # a part is no result
    name = found["device"].replace(" ", "-") if device == "cuda" else "cpu"
    results = config.option.results
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"ops-{name}-{date.today()}.json"
    found |= {"date": str(date.today()), "failed": failed, "rows": rows}
    path.write_text(json.dumps(found, indent=1) + "\n")
    terminalreporter.write_line(f"written to {path}")


def table(rows: list[dict], found: dict) -> Table:
    """One line a provider; `ratio` is its time over ours."""
    copy = found["copy_bytes_per_second"]
    title = (
        f"{found['device']}, copy {copy / 1e9:,.0f} GB/s, {found['versions']}, {found['commit']}"
    )
    result = Table(title=title)
    for column in ("op", "shape", "provider", "ms", "GB/s", "% of copy", "time / ours"):
        result.add_column(column, justify="left" if column == "op" else "right")
    ours = {(r["op"], *r["shape"]): r["seconds"] for r in rows if r["provider"] == "ours"}
    for row in rows:
        rate = row["bytes"] / row["seconds"]
        first = ours.get((row["op"], *row["shape"]))
        result.add_row(
            row["op"],
            " x ".join(map(str, row["shape"])),
            row["provider"],
            f"{row['seconds'] * 1e3:.3f}",
            f"{rate / 1e9:.1f}",
            f"{100 * rate / copy:.0f}",
            f"{row['seconds'] / first:.2f}" if first else "",
            end_section=False,
        )
    return result
