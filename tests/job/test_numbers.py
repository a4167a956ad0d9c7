"""Numbers that go wrong: stopped by the name of a tensor or a block, or planned with all the same.

Every method meets every fault; allocations and repairs, which come after the scores, those that the
scores let through.
"""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from edits import edit_config, edit_tensors
from jobs import compress, said, stage

from compressor.config.choices import ALLOCATIONS
from compressor.config.repair import KINDS
from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.planning.allocation import allocate
from compressor.scoring.methods import CHANNELS, METHODS
from compressor.scoring.score import score
from compressor.scoring.scores import Scores
from compressor.text.tokens import TokenSet

BLOCK = "model.layers.1."
GATE, UP, DOWN = (f"{BLOCK}mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
CHOOSING = [m.name for m in METHODS.values() if CHANNELS in m.units]


def no_number(tensors) -> None:
    tensors[DOWN].view(-1)[3] = torch.nan


def infinite_embedding(tensors) -> None:
    tensors["model.embed_tokens.weight"][7, 3] = torch.inf


def overflowing(tensors) -> None:
    """Each is finite; the product of what they make is not."""
    tensors[GATE].mul_(1e22)
    tensors[UP].mul_(1e22)


def overflowing_half(tensors) -> None:
    for name in list(tensors):
        tensors[name] = tensors[name].half()
    tensors[GATE].mul_(6000)
    tensors[UP].mul_(6000)


def zeros(tensors) -> None:
    """A dead channel, a channel that is never read, a dead block, and a dead KV group."""
    tensors[UP][5] = 0
    tensors[DOWN][:, 9] = 0
    tensors["model.layers.2.mlp.down_proj.weight"].zero_()
    tensors[f"{BLOCK}self_attn.v_proj.weight"][:4] = 0


def all_alike(tensors) -> None:
    """All units are the same, and Gram matrices of rank one."""
    for name, tensor in tensors.items():
        if "_proj" in name:
            tensor.fill_(0.01)


NAMED = {  # what is stopped, and by which name
    no_number: f"{DOWN} holds NaN or infinite values",
    infinite_embedding: "model.embed_tokens.weight holds NaN or infinite values",
    overflowing: "block 1",
    overflowing_half: "block 1",
}


@pytest.fixture(scope="module")
def faulty(llama, tmp_path_factory):
    """The function that gives the model with a fault, made once."""

    @cache
    def made(fault) -> Path:
        folder = shutil.copytree(llama, tmp_path_factory.mktemp("faulty") / fault.__name__)
        edit_tensors(folder, fault)
        if fault is overflowing_half:
            edit_config(folder, dtype="float16", torch_dtype="float16")
        return folder

    return made


def scored(folder: Path, method: str) -> Scores:
    """On few tokens, so that no Gram matrix of the FFN's 48 channels has full rank."""
    checkpoint = Checkpoint(folder)
    texts = TokenSet([torch.arange(3, 19), torch.full((16,), 5)])
    return score(checkpoint, method, tokens=texts, stream=BlockStream(checkpoint))


@pytest.mark.parametrize("fault", NAMED)
@pytest.mark.parametrize("method", CHOOSING)
def test_a_fault_is_stopped_by_name(faulty, method, fault):
    blind = {"random": (overflowing, overflowing_half), "magnitude": (overflowing_half,)}
    if fault in blind.get(method, ()):  # it looks at no such number
        blocks = scored(faulty(fault), method).blocks
        assert all(values.isfinite().all() for block in blocks for values in block.values())
        return
    with pytest.raises(InputError) as stopped:
        scored(faulty(fault), method)
    assert NAMED[fault] in str(stopped.value)


@pytest.mark.parametrize("fault", [zeros, all_alike])
@pytest.mark.parametrize("method", CHOOSING)
def test_what_is_nothing_or_alike_is_planned_with(faulty, method, fault):
    folder = faulty(fault)
    plans = [
        allocate(scored(folder, method), Checkpoint(folder), Target("keep-blocks", 0.7), how=how)
        for how in ("uniform", "global", "uniform")
    ]
    assert plans[0].blocks == plans[2].blocks
    if fault is all_alike and method != "random":
        # Ties go to the lower index.
        for block in plans[0].blocks:
            assert block["ffn"] == [*range(len(block["ffn"]))]
    elif method in ("llm-bip", "wanda-sp", "taylor", "kfac", "mask-fisher"):
        assert not {5, 9} & {*plans[0].blocks[1]["ffn"]}


JOBS = [
    *(("--allocate", how, "--repair", "none") for how in ALLOCATIONS if how != "besa"),
    pytest.param(("--allocate", "besa", "--repair", "none"), marks=pytest.mark.slow),
    *(("--repair", kind) for kind in KINDS if kind != "bias"),
    ("--select", "obs", "--kv-cost", "measured", "--repair", "none"),
]


@pytest.mark.parametrize("given", JOBS, ids=" ".join)
def test_every_allocation_and_repair_of_what_is_nothing(faulty, quick, tmp_path, given):
    source = faulty(zeros)
    layout = ("--layout", "padded", "--method", "llm-bip")
    assert compress(source, tmp_path / "out", "--keep", 0.7, *layout, *given, *quick) == 0
    written = Checkpoint(tmp_path / "out")
    tensors = written.read([*written.tensors])
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    json.loads((tmp_path / "out/compression.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_no_plan_of_scores_that_are_no_numbers(llama, tmp_path, capsys, value):
    scores = scored(llama, "magnitude")
    scores.blocks[2]["ffn"][4] = value
    scores.save(tmp_path / "scores")
    assert stage("plan", tmp_path / "scores", "--keep", 0.7, "--out", tmp_path / "plan") == 2
    assert "The scores of ffn in block 2 are not finite." in said(capsys)
    assert not (tmp_path / "plan").exists()
