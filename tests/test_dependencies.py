"""The lock has what was tested, with hashes; the page of licences has what is asked for."""

import re
from pathlib import Path

import make_dependencies
import pytest

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
PINS = [
    line.strip()
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line and not line.startswith("#")
]


def test_every_entry_has_hashes_and_no_address():
    entries = re.split(r"\n(?=[a-z])", LOCK.strip())
    assert len(entries) > 100 and "://" not in LOCK
    for entry in entries:
        first, *hashes = entry.split(" \\\n    --hash=sha256:")
        assert re.fullmatch(r"[a-z0-9.-]+==\S+( ; .+)?", first.strip()), first
        assert hashes and all(re.fullmatch(r"[0-9a-f]{64}", each.strip()) for each in hashes)


@pytest.mark.parametrize("pin", PINS)
def test_what_was_tested_is_locked(pin):
    name, version = pin.split("==")
    if make_dependencies.key(name) != "uv":
        assert f"{make_dependencies.key(name)}=={version} " in LOCK


def test_every_dependency_is_on_the_page():
    page = make_dependencies.PAGE.read_text()
    extras = {*make_dependencies.PROJECT["optional-dependencies"]}
    wanted = [*make_dependencies.PROJECT["dependencies"], *make_dependencies.own(extras)]
    for name, _ in make_dependencies.asked(wanted, set()):
        assert name == make_dependencies.OWN or f"| {name} | " in page
