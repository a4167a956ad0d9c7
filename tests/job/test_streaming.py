"""Models of the hub whose shards are on this disk one at a time; the hub is one of this machine."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_server import Hub, serving
from huggingface_hub import constants, file_download
from jobs import compress, said, same_bytes, stage
from transformers import AutoModelForCausalLM

import compressor.model.fingerprint
from compressor.config.hub_names import called, parse_streamed
from compressor.errors import InputError, MachineError
from compressor.job import streaming
from compressor.job.hub import at_hand
from compressor.model import disk, streamed
from compressor.model.checkpoint import Checkpoint
from compressor.model.loading import load, open_whole
from compressor.model.streamed import place_of, shards_of

NAME = "some-org/Some.Model-1"
SOURCE = f"hf://{NAME}"
ENDS = 2000  # bytes of a shard's beginning and end that its stub has


@pytest.fixture(scope="module")
def sharded(make_checkpoint, tmp_path_factory) -> Path:
    """A checkpoint of several shards, with blocks that lie in two of them."""
    folder = tmp_path_factory.mktemp("streaming")
    made = make_checkpoint(folder / "made")
    whole = AutoModelForCausalLM.from_pretrained(made, dtype="auto")
    shutil.copytree(made, folder / "sharded", ignore=shutil.ignore_patterns("*.safetensors"))
    whole.save_pretrained(folder / "sharded", max_shard_size="40KB")
    return folder / "sharded"


@pytest.fixture
def hub(sharded, tmp_path, monkeypatch):
    """A hub with one model, also for processes that are started; `there` is how many of its shards were
    on this disk whenever one had arrived.
    """
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    for module in (streaming, compressor.model.fingerprint):
        monkeypatch.setattr(module, "FINGERPRINT_BYTES", ENDS)
    with serving(Hub()) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        hub.commit, hub.folder, hub.there = hub.add(NAME, sharded), sharded, []
        fetch = streamed.fetched

        def watched(*given):
            path = fetch(*given)
            hub.there.append(len([*path.parent.parent.rglob("*.safetensors")]))
            return path

        monkeypatch.setattr(streamed, "fetched", watched)
        yield hub


def arrivals(hub: Hub) -> list[str]:
    """The shards that were downloaded whole."""
    return [
        path.rpartition("/")[2]
        for method, path, span in hub.asked
        if method == "GET" and path.endswith(".safetensors") and not span
    ]


def test_only_ends_of_shards_are_fetched_to_open_a_model(hub):
    folder = at_hand(SOURCE)
    assert called(folder) == NAME and not arrivals(hub)
    checkpoint, plain = Checkpoint(folder), Checkpoint(hub.folder)
    assert checkpoint.parameters == plain.parameters
    assert checkpoint.fingerprint == plain.fingerprint  # what is known of one is known of the other
    assert not arrivals(hub) and checkpoint.change() is None
    for stub in folder.glob("*.safetensors"):
        data, real = stub.read_bytes(), (hub.folder / stub.name).read_bytes()
        assert data != real and len(data) == len(real) and data[-ENDS:] == real[-ENDS:]
    before = len(hub.asked)
    assert at_hand(SOURCE) == folder
    assert not [path for _, path, _ in hub.asked[before:] if path.endswith(".safetensors")]


def test_tensors_come_from_one_shard_after_the_other(hub):
    checkpoint, plain = Checkpoint(at_hand(SOURCE)), Checkpoint(hub.folder)
    held = {}
    for block in range(checkpoint.blocks):
        held[block] = checkpoint.read_block(block)
    held[-1] = checkpoint.read(checkpoint.outer_tensors())
    assert {*hub.there} == {1} and len(hub.there) > 3
    assert all(
        checkpoint.file_of(name) is None for name in checkpoint.tensors
    )  # a stub is no file of it
    # What is mapped of shards that are gone stays readable.
    held[-1] |= {f"{b}.{n}": t for b in range(checkpoint.blocks) for n, t in held.pop(b).items()}
    expected = plain.read(plain.outer_tensors())
    expected |= {f"{b}.{n}": t for b in range(plain.blocks) for n, t in plain.read_block(b).items()}
    assert {*held[-1]} == {*expected}
    assert all(torch.equal(held[-1][name], tensor) for name, tensor in expected.items())


def test_a_job_makes_what_it_makes_of_the_folder(hub, text_file, tmp_path, capsys):
    asked = ["--keep", 0.7, "--calibration", text_file, "--length", 32, "--samples", 4]
    assert compress(SOURCE, tmp_path / "a", *asked) == 0, said(capsys)
    told = said(capsys)
    assert "one at a time on this disk" in told
    assert compress(hub.folder, tmp_path / "b", *asked) == 0
    assert same_bytes(tmp_path / "a/model.safetensors", tmp_path / "b/model.safetensors")
    record = json.loads((tmp_path / "a/compression.json").read_text())
    assert (record["source"]["name"], record["source"]["commit"]) == (NAME, hub.commit)
    plain = json.loads((tmp_path / "b/compression.json").read_text())
    assert record["run"]["samples"] == plain["run"]["samples"]
    assert {*hub.there} == {1}
    shards = len([*hub.folder.glob("*.safetensors")])
    assert shards < len(arrivals(hub)) <= 16 * shards


def test_stages_take_it_and_what_wants_it_whole_builds_it(hub, text_file, tmp_path, capsys):
    scores = tmp_path / "scores.safetensors"
    for command in (
        ("inspect", SOURCE),
        ("estimate", SOURCE, "--device", "h200"),
        ("score", SOURCE, "--out", scores, "--method", "magnitude", "--select", "score"),
        ("eval", SOURCE, "--text", text_file, "--length", 32),
    ):
        assert stage(*command) == 0, said(capsys)
    folder = at_hand(SOURCE)
    model = open_whole(Checkpoint(folder), "cpu", torch.float32, "no")
    plain = open_whole(Checkpoint(hub.folder), "cpu", torch.float32, "no")
    for (name, one), (_, other) in zip(
        model.state_dict().items(), plain.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
    with pytest.raises(InputError, match=r"streamed from the hub shard by shard.*without hf://"):
        load(folder)


def test_a_shard_that_breaks_off_goes_on_and_a_wrong_one_is_removed(hub):
    folder = at_hand(SOURCE)
    first = min(folder.glob("*.safetensors")).name
    hub.cut = 1
    checkpoint = Checkpoint(folder)
    name = next(n for n, entry in checkpoint.tensors.items() if entry.file.name == first)
    assert torch.equal(checkpoint.read([name])[name], Checkpoint(hub.folder).read([name])[name])
    asked = [span for _, path, span in hub.asked if path.endswith(first)]
    assert re.fullmatch(r"bytes=[1-9]\d+-", asked[-1])  # from where it broke off
    shutil.rmtree(place_of(folder) / "arriving")
    (place_of(folder) / first).unlink()
    hub.wrong = {first}
    with pytest.raises(MachineError, match=f"{first} of {NAME} did not come as the hub has it"):
        checkpoint.read([name])
    assert not [*place_of(folder).rglob("*.safetensors")]


def test_without_the_hub_it_is_said_and_the_job_goes_on_later(hub, quick, tmp_path, capsys):
    folder = at_hand(SOURCE)
    asked = [SOURCE, tmp_path / "a", "--keep", 0.7, *quick, "--repair", "none"]
    scored = []
    fetch = streamed.fetched

    def lost(*given):
        scored.append(given)
        hub.down = len(scored) > 14
        return fetch(*given)

    streamed.fetched = lost  # put back with the fixture's own
    assert compress(*asked) == 4
    told = said(capsys)
    assert f"of {NAME}, which is streamed, cannot be fetched" in told and "add --resume" in told
    hub.down, streamed.fetched = False, fetch
    assert compress(*asked, "--resume") == 0
    assert compress(hub.folder, tmp_path / "b", *asked[2:]) == 0
    assert same_bytes(tmp_path / "a/model.safetensors", tmp_path / "b/model.safetensors")
    hub.down = True
    with pytest.raises(MachineError, match="the hub cannot be reached"):
        at_hand(SOURCE)
    assert shards_of(folder) is not None


def test_a_disk_that_has_no_room_for_a_shard_is_said(hub, monkeypatch):
    folder = at_hand(SOURCE)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5000))
    checkpoint = Checkpoint(folder)
    with pytest.raises(MachineError, match=r"has 5 KB free, and the next shard of .* needs"):
        checkpoint.read_block(0)


def test_another_process_that_makes_room_is_waited_for(hub, monkeypatch):
    checkpoint = Checkpoint(at_hand(SOURCE))
    opened = streamed.safe_open

    def taken(path, **given):
        path.unlink()
        return opened(path, **given)

    monkeypatch.setattr(streamed, "safe_open", taken)
    with pytest.raises(MachineError, match="Other processes take away"):
        checkpoint.read_block(0)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hf://org/name", ("org/name", None)),
        (Path("hf://org/name@v2"), ("org/name", "v2")),
        ("hf://name", None),
        ("hf://org/name/file", None),
        ("org/name", None),
    ],
)
def test_names(text, named):
    assert parse_streamed(text) == named
