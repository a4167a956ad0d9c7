"""What `eval --tasks` found, as a table that a terminal of 80 columns shows."""

from collections.abc import Iterator

from rich import box
from rich.table import Table

NOTE = "Right in percent, ± its standard error; chance: what guessing gets."
PAIRED = "change: ± its paired standard error; lost: right before, wrong after."


def table(found: dict) -> Table:
    """A row a task and metric; with another model both, and what became of single questions."""
    against = found["against"]
    shown = Table(title=title(found), box=box.SIMPLE_HEAD, padding=0)
    shown.title_justify = shown.caption_justify = "left"
    shown.add_column("", overflow="fold")
    compared = ("before", "after", "change", "lost", "won")
    for head in ("asked", "chance", *(compared if against else ("right",))):
        shown.add_column(head, justify="right", no_wrap=True)
    for row in rows(found):
        shown.add_row(*row)
    return shown


def notes(found: dict) -> list[str]:
    """How its columns are to be read."""
    return [NOTE, *([PAIRED] if found["against"] else [])]


def title(found: dict) -> str:
    sources = dict.fromkeys(task["source"].partition(",")[0] for task in found["tasks"].values())
    against = f" (after) against {found['against']} (before)" if found["against"] else ""
    return f"{found['model']}{against}, asked by {' and '.join(sources)}"


def rows(found: dict) -> Iterator[list[str]]:
    for name, task in found["tasks"].items():
        for metric, said in task["metrics"].items():
            chance = "" if task["chance"] is None else f"{100 * task['chance']:.1f}"
            row = [f"{name}, {metric}", f"{task['questions']:,}", chance]
            if found["against"]:
                row.append(percent(said["against"]["value"], said["against"]["stderr"]))
            row.append(percent(said["value"], said["stderr"]))
            if found["against"]:
                row.append(percent(said["difference"], said["difference_stderr"], "+"))
                row += [f"{said['lost']:,}", f"{said['won']:,}"]
            yield row


def percent(value: float, error: float | None, sign: str = "") -> str:
    """`58.2 ±2.5`; of one question there is no error."""
    said = f"{100 * value:{sign}.1f}"
    return said if error is None else f"{said} ±{100 * error:.1f}"
