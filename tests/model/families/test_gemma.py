"""What Gemma 2 and 3 have beside their tables: config spellings, norms, heads that must divide."""

import json

import pytest
import torch
from jobs import decided
from transformers import AutoConfig, AutoModelForCausalLM

from compressor.analysis.inspection import inspect
from compressor.config.target import Target
from compressor.errors import InputError
from compressor.job.checks import check_before_starting
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.model.units import BlockGeometry
from compressor.planning.lattice import lattice
from compressor.planning.plan import Plan
from compressor.scoring.methods.llm_bip import amplification
from compressor.scoring.score import score
from compressor.text.tokens import TokenSet
from compressor.writing.cuts import write

IDS = torch.arange(3, 40)[None]
SIZES = {"tie_word_embeddings": True, "query_pre_attn_scalar": 4, "sliding_window": 5}
# Some of hidden size 32 that 6 heads do not divide.
PLAN = Plan([{"attention": [0, 1, 3], "ffn": [*range(30)]}] * 3)


@pytest.fixture(scope="module", params=["gemma2", "gemma3_text"])
def gemma(request, make_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "model"
    return make_checkpoint(folder, request.param, **SIZES, num_hidden_layers=3)


@torch.no_grad()
def logits(folder):
    return AutoModelForCausalLM.from_pretrained(folder)(IDS).logits


@pytest.mark.parametrize("layout", ["uniform", "per-layer", "padded"])
def test_heads_divide_the_hidden_size(gemma, tmp_path, layout):
    checkpoint = Checkpoint(gemma)
    assert lattice(checkpoint).attention == [1, 2, 4]
    sentence = "refuses 6 heads at hidden size 32; keep a number of heads that divides it"
    with pytest.raises(InputError, match=sentence):
        write(checkpoint, PLAN, tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["exact", "besa"])
def test_errors_of_cuts_are_not_measured(gemma, tmp_path, how):
    config = decided(gemma, tmp_path / "out", [Target("keep", 0.8)], allocate=how)
    with pytest.raises(InputError, match=r"gemma\w+ norms that before it is added; use"):
        check_before_starting(config, Checkpoint(gemma))


def test_norms_weigh_one_more_than_their_tensors_say(gemma):
    """Where 1 + w is nothing, a change of the stream passes the FFN by."""
    checkpoint = Checkpoint(gemma)
    geometry, weights = BlockGeometry.of(checkpoint), checkpoint.read_block(0)
    ones = torch.ones(4, geometry.units["ffn"], dtype=torch.float64)
    statistics = {"norm_rate": torch.tensor(1.0), "gated": ones}
    name = f"{checkpoint.family.ffn_norm}.weight"
    for weight, passes in ((-1.0, False), (0.0, True)):
        weights[name] = torch.full_like(weights[name], weight)
        v = amplification(weights, statistics, geometry, "bip-energy", ones[0])
        assert bool((v > 1).all()) == passes and bool((v == 1).all()) != passes


def test_the_activation_is_found_under_its_name(gemma):
    checkpoint = Checkpoint(gemma)
    assert BlockGeometry.of(checkpoint).activation == "gelu_pytorch_tanh"
    answers = {row["target"]: row for row in inspect(gemma)["loads"]}
    assert answers["vLLM, tensor parallel 1"]["loads"]


@pytest.mark.parametrize("scaled", [False, True])
def test_both_spellings_of_two_rotary_settings(make_checkpoint, tmp_path, scaled):
    """Configs as Gemma 3's were on the hub, and as newer versions write them."""
    source = make_checkpoint(
        tmp_path / "model", "gemma3_text", **SIZES, sliding_window_pattern=2, num_hidden_layers=3
    )
    old = json.loads((source / "config.json").read_text())
    old.pop("rope_parameters"), old.pop("layer_types", None)
    old |= {"rope_theta": 5e4, "rope_local_base_freq": 300.0, "sliding_window_pattern": 2}
    old["rope_scaling"] = {"rope_type": "linear", "factor": 8.0} if scaled else None
    (source / "config.json").write_text(json.dumps(old))
    whole = Plan([{"attention": [*range(4)], "ffn": [*range(48)]}] * 3)
    write(Checkpoint(source), whole, tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), logits(source))
    new = json.loads((tmp_path / "out/config.json").read_text())
    read = AutoConfig.from_pretrained(source).rope_parameters
    assert new["rope_parameters"] == read
    for name in ("rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern"):
        new.pop(name)
    (tmp_path / "out/config.json").write_text(
        json.dumps(new | {"layer_types": layer_types(source)})
    )
    write(Checkpoint(tmp_path / "out"), whole, tmp_path / "again")
    again = json.loads((tmp_path / "again/config.json").read_text())
    assert (again["rope_theta"], again["rope_local_base_freq"]) == (5e4, 300.0)
    assert (again.get("rope_scaling") or None) == old["rope_scaling"]
    assert torch.equal(logits(tmp_path / "again"), logits(source))


def layer_types(folder):
    return AutoConfig.from_pretrained(folder).layer_types


def test_scores_look_at_the_tanh_of_its_gelu(gemma):
    tokens = TokenSet([torch.arange(3, 43), torch.arange(50, 90)])
    found = score(Checkpoint(gemma), "llm-bip", "bip-gated", tokens, BlockStream(Checkpoint(gemma)))
    assert all(v.isfinite().all() and (v > 0).all() for b in found.blocks for v in b.values())
