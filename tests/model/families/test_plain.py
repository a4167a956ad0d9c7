"""Families without a gate: what they are not, what cannot be cut, and the biases they fold into."""

import json

import pytest
import torch
from jobs import compress
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN

from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.model.units import BlockGeometry
from compressor.planning.lattice import lattice
from compressor.planning.plan import Plan
from compressor.planning.uniform import solve
from compressor.repairing.streaming import Repair
from compressor.scoring.methods.llm_bip import amplification
from compressor.scoring.methods.statistics import BlockStatistics
from compressor.text.tokens import Batch, TokenSet
from compressor.writing.cuts import write

PLAIN = ["gpt2", "gpt_neox", "opt"]


@pytest.fixture(params=PLAIN)
def plain(request, random_family):
    return random_family(request.param)


def texts(count=12) -> TokenSet:
    generator = torch.Generator().manual_seed(3)
    return TokenSet(
        [torch.randint(3, 100, (20 + i % 4,), generator=generator) for i in range(count)]
    )


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"do_layer_norm_before": False}, "do_layer_norm_before is false"),
        ({"word_embed_proj_dim": 16}, "is 16 wide and its stream 32"),
    ],
)
def test_opt_350m_is_refused(make_checkpoint, tmp_path, sizes, said):
    folder = make_checkpoint(tmp_path / "m", "opt", **{"word_embed_proj_dim": 32} | sizes)
    with pytest.raises(InputError, match=f"cannot be cut.*{said}.*another size"):
        Checkpoint(folder)


def test_a_ratio_that_needs_heads_says_that_they_stay(plain):
    checkpoint = Checkpoint(plain)
    assert lattice(checkpoint).attention == [8]
    with pytest.raises(InputError, match=r"smallest possible is .* heads of \w+ cannot be cut"):
        solve(Target("keep", 0.1), checkpoint, lattice(checkpoint))


def test_heads_go_in_the_padded_layout_alone(plain, tmp_path):
    checkpoint = Checkpoint(plain)
    plan = Plan([{"attention": [0, 3], "ffn": [*range(64)]}] * 3)
    for layout, said in (("uniform", "heads of"), ("per-layer", "heads of")):
        with pytest.raises(InputError, match=said):
            write(checkpoint, plan, tmp_path / layout, layout)
    write(checkpoint, plan, tmp_path / "padded", "padded")
    AutoModelForCausalLM.from_pretrained(tmp_path / "padded")
    assert Checkpoint(tmp_path / "padded").units == {"attention": 8, "ffn": 64}


@pytest.mark.parametrize("layout", ["per-layer", "all"])
def test_blocks_of_their_own_widths_are_refused(plain, text_file, tmp_path, capsys, layout):
    given = [plain, tmp_path / "out", "--keep", 0.8, "--calibration", text_file, "--layout", layout]
    assert compress(*given) == 2
    assert "that differ in width; use --layout uniform" in " ".join(capsys.readouterr().err.split())


def test_biases_take_up_what_is_removed(plain):
    checkpoint = Checkpoint(plain)
    stream = BlockStream(checkpoint)
    plan = Plan([{"attention": [*range(8)], "ffn": [*range(0, 128, 2)]}] * 3)
    repair = Repair(stream, plan, texts(), "bias")
    changes = list(repair.blocks())
    assert checkpoint.family.output("ffn").replace("weight", "bias") in changes[0]
    for block, changed in zip(repair.record, changes, strict=True):
        assert all(name.endswith("bias") for name in changed)
        for step in block["steps"].values():
            assert step["after"] <= step["before"]


@pytest.mark.parametrize("mode", ["bip-gated", "bip-energy"])
def test_amplification_is_norm_slope_and_both_projections(plain, mode):
    """Against the sum over tokens of the FFN's own derivatives, taken by autograd."""
    checkpoint = Checkpoint(plain)
    geometry, family = BlockGeometry.of(checkpoint), checkpoint.family
    stream = BlockStream(checkpoint, dtype=torch.float64)
    p, found = (1 if mode == "bip-gated" else 2), []

    def visit(index, layer, forward) -> None:
        statistics = BlockStatistics(layer, geometry, frozenset({"moments", "gated"}))
        seen = []
        up = layer.get_submodule(family.up)
        handle = up.register_forward_hook(lambda _, args, out: seen.append(out))
        ids = torch.zeros(1, 20, dtype=torch.int64)
        statistics.batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool))
        with statistics:
            for _ in forward():
                pass
        handle.remove()
        weights = dict(layer.state_dict())
        down = weights[family.output("ffn")].abs().pow(p).sum(0)
        mine = amplification(weights, statistics.means(1), geometry, mode, down)
        inner = seen[0].detach().requires_grad_()
        with torch.enable_grad():
            ACT2FN[geometry.activation](inner).sum().backward()
        slopes = inner.grad.flatten(0, -2).abs().pow(p).mean(0)
        rate = statistics.sums["norm_rate"] / 20
        gain = (weights[family.ffn_norm + ".weight"].abs() * rate) ** p
        theirs = 1 + gain * ((down * slopes) @ weights[family.up + ".weight"].abs().pow(p))
        if geometry.parallel:
            theirs = torch.ones_like(theirs)
        found.append((mine, theirs))

    stream.run([torch.arange(3, 23)[None]], visit)
    for mine, theirs in found:
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=0)


def test_generation_after_a_cut(plain, text_file, tmp_path, capsys):
    """The whole job, verified."""
    dest = tmp_path / "out"
    given = [plain, dest, "--keep-blocks", 0.75, "--calibration", text_file, "--length", 32,
             "--samples", 6, "--repair", "bias", "--json"]  # fmt: skip
    assert compress(*given) == 0
    assert json.loads(capsys.readouterr().out)["verified"].startswith("logits within")
    model = AutoModelForCausalLM.from_pretrained(dest)
    assert model.generate(torch.arange(3, 9)[None], max_new_tokens=4, pad_token_id=0).shape[1] <= 10
