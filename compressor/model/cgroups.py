"""What the control groups of Linux leave of the machine's memory: a container, a job of a batch system.

The system says nothing of them where it is asked for free memory, and kills who takes more.
"""

from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Of version 1 and 2: the files of the limit and of what is used, and what of that is given back first.
FIRST = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
SECOND = "memory.max", "memory.current", "inactive_file"


def room() -> float:
    """Bytes until the nearest limit of the groups that this process is in; infinity without any."""
    try:
        lines = OWN.read_text(encoding="utf-8").splitlines()
    except OSError:  # another system, or none of this kind
        return float("inf")
    left = float("inf")
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            left = min(left, below(ROOT, path, SECOND))
        elif "memory" in controllers.split(","):
            left = min(left, below(ROOT / "memory", path, FIRST))
    return left


def below(mounted: Path, path: str, names: tuple[str, str, str]) -> float:
    """The least that a group and those around it leave. In a container the path may be the host's, of
    which only the mounted folder itself is seen, which then is the group's own.
    """
    group = mounted / path.lstrip("/")
    folders = [group, *(each for each in group.parents if each.is_relative_to(mounted))]
    return min(of_group(folder, *names) for folder in folders)


def of_group(folder: Path, limit: str, used: str, reclaimed: str) -> float:
    """Bytes that one group leaves; files that were read count for free, as they do elsewhere."""
    try:
        most = (folder / limit).read_text().strip()
        if most == "max":
            return float("inf")
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        taken = int((folder / used).read_text()) - int(counts.get(reclaimed, 0))
    except (OSError, ValueError):  # no such group here, or one without limits
        return float("inf")
    return max(0, int(most) - taken)
