"""Names on the hub in the place of folders, and results pushed there; the hub is one of this machine."""

import json
import shutil
from types import SimpleNamespace

import pytest
from hub_server import Hub, serving
from huggingface_hub import constants, file_download
from jobs import compress, said, same_bytes, stage

import compressor
from compressor.config.hub_names import called, parse_name
from compressor.errors import InputError, MachineError
from compressor.job.hub import at_hand, wanted
from compressor.model import disk

NAME = "some-org/Some.Model-1"
CHUNK = 1000  # bytes that are kept at a time
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache, and no waiting between two tries."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    return tmp_path / "cache"


def move_to(address: str, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(llama, tmp_path, cache, monkeypatch):
    """A hub with one model, beside whose files are some that nobody reads."""
    folder = tmp_path / "on-the-hub"
    shutil.copytree(llama, folder)
    for name in ("pytorch_model.bin", "modeling_own.py", "consolidated.safetensors"):
        (folder / name).write_bytes(b"not to be opened")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    (folder / "LICENSE").write_text("As you like it.")
    with serving(Hub()) as hub:
        move_to(hub.address, monkeypatch)
        hub.commit = hub.add(NAME, folder)
        hub.folder = folder
        yield hub


def test_a_model_is_downloaded_once_and_only_what_is_read(hub, cache):
    folder = at_hand(NAME)
    assert folder.is_relative_to(cache) and folder.name == hub.commit
    names = {path.name for path in folder.iterdir()}
    kept = {"pytorch_model.bin", "modeling_own.py", "consolidated.safetensors", "onnx"}
    assert names == {path.name for path in hub.folder.iterdir()} - kept
    assert all(same_bytes(folder / name, hub.folder / name) for name in names)
    got = len(hub.got())
    assert at_hand(NAME) == folder and len(hub.got()) == got == len(names)
    assert called(folder) == NAME


def test_a_job_on_a_name_is_that_on_the_folder(hub, llama, quick, tmp_path):
    """But for what it is called: the card names the model on the hub."""
    assert compress(NAME, tmp_path / "a", "--keep", 0.7, *quick, "--repair", "none") == 0
    assert compress(llama, tmp_path / "b", "--keep", 0.7, *quick, "--repair", "none") == 0
    assert same_bytes(tmp_path / "a/model.safetensors", tmp_path / "b/model.safetensors")
    card = (tmp_path / "a/README.md").read_text()
    assert f"base_model: {NAME}\n" in card and f"# {NAME}, compressed" in card
    record = json.loads((tmp_path / "a/compression.json").read_text())
    assert (record["source"]["name"], record["source"]["commit"]) == (NAME, hub.commit)
    assert f"compress {NAME}@{hub.commit} a" in record["run"]["command"]
    assert (tmp_path / "a/LICENSE").exists()


def test_options_are_judged_before_anything_is_downloaded(hub, quick, tmp_path, capsys):
    assert compress(NAME, tmp_path / "a", "--keep", 1.7, *quick) == 2
    assert "--keep must lie between 0 and 1" in said(capsys) and not hub.asked


def test_every_stage_takes_a_name(hub, text_file, tmp_path, capsys):
    scores, plan = tmp_path / "scores.safetensors", tmp_path / "plan.json"
    dest = tmp_path / "cut"
    for command in (
        ("inspect", NAME),
        ("estimate", NAME, "--device", "h200"),
        ("eval", NAME, "--text", text_file, "--length", 32),
        ("score", NAME, "--out", scores, "--method", "magnitude", "--select", "score"),
        ("plan", scores, "--out", plan, "--keep", 0.7, "--source", NAME),
        ("cut", NAME, dest, "--plan", plan, "--repair", "none", "--no-verify"),
    ):
        assert stage(*command) == 0, said(capsys)
    assert compressor.inspect(NAME)["parameters"] > compressor.inspect(dest)["parameters"]
    (tmp_path / "sweep.yaml").write_text(
        f"source: {NAME}\nmethod: magnitude\nrepair: none\nkeep: 0.8\nverify: false\n"
        f"calibration: {text_file}\nlength: 32\n"
    )
    assert stage("sweep", tmp_path / "sweep.yaml", tmp_path / "swept") == 0
    assert json.loads((tmp_path / "swept/sweep.json").read_text())["source"] == NAME


def test_a_revision_is_another_model(hub, llama, make_checkpoint, tmp_path):
    other = make_checkpoint(tmp_path / "other", hidden_size=48)
    commit = hub.add(NAME, other, "v2")
    assert at_hand(f"{NAME}@v2").name == at_hand(f"{NAME}@{commit}").name == commit
    assert at_hand(NAME).name == hub.commit
    with pytest.raises(InputError, match="on the hub, and this revision of it is not"):
        at_hand(f"{NAME}@v3")


def test_a_download_that_breaks_off_goes_on(hub):
    """From where it was."""
    hub.cut = 1
    assert same_bytes(at_hand(NAME) / "model.safetensors", hub.folder / "model.safetensors")
    half = (hub.folder / "model.safetensors").stat().st_size // 2
    assert [span for _, _, span in hub.asked if span] == [f"bytes={half // CHUNK * CHUNK}-"]


def test_where_the_hub_is_gone_what_has_arrived_is_kept(hub):
    hub.cut, hub.dies = 1, True
    with pytest.raises(MachineError, match=f"'{NAME}', and the hub cannot be reached.*are kept"):
        at_hand(NAME)
    hub.down, hub.asked = False, []
    assert same_bytes(at_hand(NAME) / "model.safetensors", hub.folder / "model.safetensors")
    assert hub.got() == ["model.safetensors"]


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_other_bytes_than_the_hub_has_are_removed(hub, file):
    hub.wrong = {file}
    with pytest.raises(MachineError, match=f"{file} of {NAME} did not come as the hub has it"):
        at_hand(NAME)
    hub.wrong = set()
    assert same_bytes(at_hand(NAME) / file, hub.folder / file)


def test_without_a_network_it_is_said_at_once_or_the_cache_is_used(hub, cache, monkeypatch, capsys):
    folder = at_hand(NAME)
    move_to(NOWHERE, monkeypatch)
    assert at_hand(NAME) == folder
    assert f"what the cache has of {NAME} is used" in said(capsys)
    with pytest.raises(
        MachineError, match="There is no folder 'a/b', and the hub cannot be reached"
    ):
        at_hand("a/b")
    assert stage("inspect", "a/b") == 4


def test_a_name_that_is_not_there_is_said(hub, quick, tmp_path, capsys):
    assert compress("some-org/other", tmp_path / "a", "--keep", 0.7, *quick) == 2
    assert "nor a model of that name on the hub that you may see" in said(capsys)


def test_a_model_that_the_disk_has_no_room_for_is_not_downloaded(hub, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(MachineError, match=f"has 1 KB free, and {NAME} needs 131 KB"):
        at_hand(NAME)
    assert not hub.got()


def test_a_model_for_some_alone_is_said(hub):
    hub.gated = True
    with pytest.raises(InputError, match="only for those who were given access"):
        at_hand(NAME)


def test_what_has_no_safetensors_is_not_downloaded(hub, tmp_path):
    (hub.folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no safetensors \(pytorch_model.bin\)"):
        at_hand(NAME)
    assert not hub.got()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("org/name", ("org/name", None)),
        ("org/name@refs/pr/1", ("org/name", "refs/pr/1")),
        ("name", None),
        ("./org/name", None),
        ("/org/name", None),
        ("../name", None),
        ("a/b/c", None),
        ("org/na--me", None),
        ("tests/job", None),  # a folder
    ],
)
def test_names(text, named, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    assert parse_name(text) == named


def test_what_is_read_comes_with_weights_last():
    files = ["model.safetensors", "config.json", "model.fp16.safetensors", "a/b.json", "x.py"]
    assert wanted([*files, "merges.txt"]) == ["config.json", "merges.txt", "model.safetensors"]


def test_a_result_is_pushed_with_its_card(hub, whole, llama, quick, capsys):
    result = whole(llama, "--keep", 0.7, *quick, "--repair", "none")
    capsys.readouterr()
    assert stage("push", result, "me/small", "--private") == 0
    assert capsys.readouterr().out.strip() == f"{hub.address}/me/small"
    assert hub.private == {"me/small": True}
    assert {f.name for f in result.iterdir()} == {*hub.pushed["me/small"]}
    assert hub.pushed["me/small"]["README.md"] == (result / "README.md").read_bytes()
    hub.writable = False
    assert stage("push", result, "me/small") == 2
    assert "log in with a token that may" in said(capsys)
    assert stage("push", llama, "me/small") == 2 and "is no result" in said(capsys)
    assert stage("push", result, "small") == 2 and "write ORG/NAME" in said(capsys)
