"""What SECURITY.md promises of a job and has no test beside it: no network, a source left as it was."""

import hashlib
import socket
from pathlib import Path

import pytest
from jobs import compress, stage


@pytest.fixture
def reached(monkeypatch) -> list:
    """Addresses that anything asked for."""
    asked: list = []

    def refuse(*given, **_):
        asked.append(given)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_no_network_and_an_untouched_source(llama, text_file, tmp_path, reached):
    before = digests(llama)
    text = ("--calibration", text_file, "--length", 32, "--samples", 6)
    assert compress(llama, tmp_path / "out", "--keep", 0.7, *text, "--repair", "ridge") == 0
    for command in ("verify", "inspect", "estimate"):
        assert stage(command, tmp_path / "out") == 0
    assert stage("eval", tmp_path / "out", "--text", text_file, "--length", 32) == 0
    assert reached == [] and digests(llama) == before
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_the_network_would_be_noticed(reached):
    with pytest.raises(OSError, match="no network here"):
        socket.create_connection(("localhost", 9))
    assert reached
