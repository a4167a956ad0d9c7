"""The tables of what a GPU run measured, in Markdown, from the rows it left.

    python bench/gpu_report.py build/gpu [--page docs/gpu.md]

Of every op and shape the microseconds, the share of a copy of the same bytes, and how many times as long
the others take; of every stage of a job on eight 7B blocks its seconds and those of all 32. Cases that
failed are named and have no figure. `--page` puts the tables in the place of all that follows the page's
heading `## Measured`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from gpu_rows import rows_of

HEADING = "## Measured\n"
NAMED = 12  # of what failed


def ops_table(rows: list[dict], copy: float | None) -> list[str]:
    """One line an op and shape; what was not timed has a dash."""
    found: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        figures = row.get("figures", {})
        if "provider" in figures:
            place = (figures["op"], *figures["shape"])
            found.setdefault(place, {})[figures["provider"]] = figures
    lines = ["| op | shape | us | % of a copy | eager | torch.compile | published |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"] if found else []
    for (op, *shape), by in found.items():
        if (ours := by.get("ours")) is None:
            continue
        share = f"{100 * ours['bytes'] / ours['seconds'] / copy:.0f}" if copy else "-"
        others = (
            f"{by[name]['seconds'] / ours['seconds']:.2f}" if name in by else "-"
            for name in ("eager", "compile", "published")
        )
        cells = (op, " x ".join(map(str, shape)), f"{1e6 * ours['seconds']:.1f}", share)
        lines.append(f"| {' | '.join([*cells, *others])} |")
    return lines if found else []


def jobs_table(rows: list[dict]) -> list[str]:
    """One line a stage of a job, and one a job."""
    lines, total = [], {}
    for row in rows:
        if "whole" in row and row["result"] == "ok":
            lines.append(line(row["part"], row["name"], row["seconds"], row["whole"]))
            before = total.get(row["part"], (0, 0))
            total[row["part"]] = (before[0] + row["seconds"], before[1] + row["whole"])
    lines += [line(part, "all stages", *seconds) for part, seconds in total.items()]
    head = ["| job | stage | s, 8 blocks | s, 32 blocks |", "| --- | --- | --- | --- |"]
    return [*head, *lines] if lines else []


def line(*cells) -> str:
    return f"| {' | '.join(f'{c:.1f}' if isinstance(c, float) else str(c) for c in cells)} |"


def other_lines(rows: list[dict]) -> list[str]:
    """Streamed scores beside an ordinary pass, steps of BESA, and the memory of jobs."""
    lines = []
    for row in rows:
        figures = row.get("figures", {})
        if "ratio" in figures:
            lines.append(
                f"- {figures['method']}: {figures['streamed']['seconds']:.2f} s, "
                f"{figures['ratio']:.2f} times an ordinary pass"
            )
        if "faster" in figures:
            step = figures["milliseconds"]
            whole = [f"; {k}: {v}" for k, v in figures.items() if k.startswith("minutes for")]
            lines.append(
                f"- a step of BESA on {figures['block']}: {step['ours']:.1f} ms, published "
                f"{step['published']:.1f} ms{''.join(whole)}"
            )
        if "block_bytes" in row:
            gpu, host, block = (
                row[name] / 1e9 for name in ("peak_gpu_bytes", "peak_rss_bytes", "block_bytes")
            )
            lines.append(
                f"- {row['part']}: at most {gpu:.1f} GB of the GPU and {host:.1f} GB of the host's "
                f"memory; a block is {block:.2f} GB"
            )
    return lines


def report(rows: list[dict]) -> str:
    """All tables; one that has no rows is not there."""
    machines, copy = [row for row in rows if "copy_bytes_per_second" in row], None
    about = []
    for here in machines[-1:]:
        copy = here["copy_bytes_per_second"]
        versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
        about.append(f"On {here['device']}, a copy {copy / 1e9:,.0f} GB/s; {versions};")
        about.append(f"commit {here['commit']}.")
    bad = [
        f"{r['part']}: {r['name']}" for r in rows if r["result"] == "failed" and "cases" not in r
    ]
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    failed = [f"Failed, without a figure: {'; '.join(bad[:NAMED])}{more}."] if bad else []
    parts = [about, failed, ops_table(rows, copy), other_lines(rows), jobs_table(rows)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def main(folder: Path, page: Path | None = None) -> None:
    rows = [row for file in sorted(folder.glob("rows-*.jsonl")) for row in rows_of(file)]
    if not rows:
        raise SystemExit(f"{folder} has no rows-*.jsonl with a row.")
    text = report(rows)
    if page is None:
        print(text, end="")
        return
    kept, heading, _ = page.read_text().partition(HEADING)
    if not heading:
        raise SystemExit(f"{page} has no heading {HEADING.strip()!r}.")
    page.write_text(f"{kept}{heading}\n{text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    main(asked.folder, asked.page)
