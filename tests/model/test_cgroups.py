"""Free memory is what a container leaves of it, in both versions of control groups."""

import math

import psutil
import pytest

from compressor.model import cgroups, memory

FIRST, SECOND = ("memory/", cgroups.FIRST), ("", cgroups.SECOND)
NO_LIMIT = {FIRST: 9223372036854771712, SECOND: "max"}


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Groups as files: (version, path) to (limit, used, of which files)."""

    def make(own: str, groups: dict) -> float:
        (tmp_path / "own").write_text(own)
        for ((place, names), path), (limit, used, of_files) in groups.items():
            folder = tmp_path / "groups" / place / path
            folder.mkdir(parents=True, exist_ok=True)
            (folder / names[0]).write_text(f"{limit}\n")
            (folder / names[1]).write_text(f"{used}\n")
            (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {of_files}\n")
        monkeypatch.setattr(cgroups, "ROOT", tmp_path / "groups")
        monkeypatch.setattr(cgroups, "OWN", tmp_path / "own")
        return cgroups.room()

    return make


@pytest.mark.parametrize("version", [FIRST, SECOND])
def test_the_nearest_limit_counts(system, version):
    own = "0::/a/b\n" if version is SECOND else "4:cpu,memory:/a/b\n0::/\n"
    inner, outer = (version, "a/b"), (version, "a")
    assert system(own, {inner: (1000, 600, 200), outer: (NO_LIMIT[version], 5000, 0)}) == 600
    assert system(own, {inner: (1000, 600, 200), outer: (5000, 4900, 0)}) == 100
    assert system(own, {inner: (1000, 2000, 0)}) == 0


def test_a_path_of_the_host_is_the_mounted_folder(system):
    assert system("4:memory:/docker/123\n", {(FIRST, ""): (1000, 100, 0)}) == 900


def test_no_limits(system, monkeypatch, tmp_path):
    assert system("0::/a\n2:cpu:/x\n", {(SECOND, "a"): ("max", 5, 0)}) == math.inf
    assert system("0::/elsewhere\n", {}) == math.inf
    monkeypatch.setattr(cgroups, "OWN", tmp_path / "none")
    assert cgroups.room() == math.inf


def test_free_memory_is_the_less_of_both(system):
    system("0::/\n", {(SECOND, ""): (1 << 20, 0, 0)})
    assert memory.free_memory("cpu") == 1 << 20
    system("0::/\n", {(SECOND, ""): (1 << 60, 0, 0)})
    assert 1 << 20 < memory.free_memory("cpu") <= psutil.virtual_memory().total
