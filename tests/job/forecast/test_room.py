"""Memory and disk beforehand, and what a job then says of itself."""

import json
import math
from types import SimpleNamespace

import psutil
import pytest
import torch
from jobs import compress, decided

from compressor.config.job import JobConfig
from compressor.config.sparse import SparseConfig
from compressor.config.target import Target
from compressor.job.checks import solved_results
from compressor.job.forecast import Forecast, room
from compressor.job.forecast.room import HELD, Disk, memory
from compressor.job.forecast.stages import Load
from compressor.job.needs import kept_states
from compressor.model.checkpoint import Checkpoint
from compressor.text.tokens import TokenSet


@pytest.fixture
def config(llama, tmp_path) -> JobConfig:
    return decided(llama, tmp_path / "out", [Target("keep", 0.7)], align=1)


def disk(config: JobConfig, checkpoint: Checkpoint) -> Disk:
    return room.disk(config, checkpoint, solved_results(config, checkpoint))


def test_disk_of_results_and_of_what_is_beside_them(config):
    checkpoint = Checkpoint(config.source)
    plain = disk(config.with_options(repair="none"), checkpoint)
    assert plain.stays == plain.at_most
    assert plain.stays == pytest.approx(0.7 * checkpoint.bytes, rel=0.02)
    assert disk(config, checkpoint).at_most == 2 * plain.stays
    both = disk(config.with_options(keep=[0.9, 0.7]), checkpoint)
    assert both.stays == pytest.approx(1.6 * checkpoint.bytes, rel=0.02)
    assert both.at_most - both.stays == pytest.approx(0.9 * checkpoint.bytes, rel=0.02)
    padded = disk(config.with_options(repair="none", layout="padded"), checkpoint)
    assert padded.stays == checkpoint.bytes
    zeros = JobConfig(config.source, config.dest, sparse=SparseConfig(sparsity=0.5))
    assert room.disk(zeros, checkpoint, []).stays == checkpoint.bytes


def test_memory_grows_with_what_is_kept(config, monkeypatch):
    here = SimpleNamespace(rss=0)  # whatever this process has
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: here)
    checkpoint = Checkpoint(config.source)

    def needed(count: int, in_files: bool = False, **options) -> int:
        own = config.with_options(**options)
        text = TokenSet([torch.zeros(500, dtype=torch.long)] * count)
        wanted = solved_results(own, checkpoint)
        return memory(Load(own, checkpoint, text, None, None, wanted), torch.float32, in_files)

    few, many, files = needed(10_000), needed(20_000), needed(20_000, in_files=True)
    kept = HELD * kept_states(config, checkpoint.blocks) * 5_000_000 * 32 * 4
    assert many - few == pytest.approx(kept, rel=0.02)
    assert files < few - kept / 2
    assert needed(20_000, repair="none") < many
    # On a GPU two blocks of float32, each in as much pinned memory as the next power of two.
    block = checkpoint.read_block(0)
    size = sum(tensor.nbytes for name, tensor in block.items() if "norm" not in name)
    pinned = needed(10_000, device="cuda", dtype="float32") - needed(10_000, device="cpu")
    assert pinned == pytest.approx(2 * 2 ** math.ceil(math.log2(size)), rel=1e-6)


def test_a_job_says_it_before_and_gives_it_after(llama, text_file, tmp_path, capsys):
    options = ("--calibration", text_file, "--length", 32, "--samples", 8, "--keep", 0.8, 0.6)
    assert compress(llama, tmp_path / "out", *options, "--no-verify") == 0
    shown = capsys.readouterr().err
    assert shown.index("forecast     about") < shown.index("score        3/3")
    assert "GB of memory" in shown and "repair keep-0.6, 2 of 2" in shown
    assert compress(llama, tmp_path / "two", *options, "--no-verify", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    for result in found:
        told, taken = result["forecast"], result["seconds"]
        assert set(told["seconds"]) == {"score", "select", "evaluate", "repair"}
        assert set(told["seconds"]) <= set(taken)
        assert told["memory_bytes"] > 1e8 and told["disk_bytes"] > told["result_bytes"] > 0
    sizes = sum(f.stat().st_size for f in (tmp_path / "two").glob("*/*.safetensors"))
    assert found[0]["forecast"]["result_bytes"] == pytest.approx(sizes, rel=0.15)


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        (["--sparsity", 0.5], {"evaluate", "prune"}),
        (
            ["--keep", 0.7, "--recover", "lora", "--recover-steps", 2],
            {"recover", "score", "repair"},
        ),
    ],
)
def test_other_jobs_say_it_too(llama, text_file, tmp_path, capsys, options, stages):
    given = ("--calibration", text_file, "--length", 32, "--samples", 8, "--no-verify", "--json")
    assert compress(llama, tmp_path / "out", *options, *given) == 0
    assert set(json.loads(capsys.readouterr().out)["forecast"]["seconds"]) >= stages


@pytest.mark.parametrize(("limit", "said"), [(None, False), (1.0, True), (10.0**12, False)])
def test_a_limit_that_cannot_be_kept_is_said(limit, said):
    assert ("--max-memory 1 is less" in str(Forecast([], 10**9, 1, 1, limit))) is said


def test_cut_texts_are_said_before_the_work(llama, text_file, tmp_path, capsys):
    options = ("--calibration", text_file, "--length", 4000, "--keep", 0.8, "--repair", "none")
    assert compress(llama, tmp_path / "out", *options, "--no-verify") == 0
    shown = " ".join(capsys.readouterr().err.split())
    told = "length The model has 64 positions, so texts were cut at 64 tokens and not at --length 4000."
    assert shown.index(told) < shown.index("forecast")
