"""What Phi-3 has beside its table: rope settings that its config class ties to the heads."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.model.tensors import SINGLE
from compressor.planning.lattice import lattice
from compressor.planning.plan import Plan
from compressor.scoring.methods import CHANNELS, METHODS
from compressor.scoring.score import score
from compressor.text.tokens import TokenSet
from compressor.writing.cuts import write

FACTORS = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}
IDS = torch.arange(3, 40)[None]


@pytest.fixture(params=["rope_scaling", "rope_parameters"])
def longrope(request, make_checkpoint, tmp_path):
    """Longrope as older and newer versions write it."""
    folder = make_checkpoint(
        tmp_path / "longrope",
        "phi3",
        original_max_position_embeddings=32,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **FACTORS},
    )
    config = json.loads((folder / "config.json").read_text())
    if request.param == "rope_scaling":
        del config["rope_parameters"]
        config |= {"rope_theta": 1e4, "rope_scaling": {"type": "longrope", **FACTORS}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def pair(make_checkpoint, tmp_path_factory):
    """A Phi-3 model, and the Llama one of the same tensors."""
    root = tmp_path_factory.mktemp("pair")
    ours = make_checkpoint(root / "phi3", "phi3")
    theirs = make_checkpoint(root / "llama", rms_norm_eps=1e-5)
    tensors = load_file(ours / SINGLE)
    for name in [n for n in tensors if "gate_up" in n or "qkv" in n]:
        parts = {"gate_up": {"gate": 48, "up": 48}, "qkv": {"q": 32, "k": 16, "v": 16}}
        fused, sizes = next((f, s) for f, s in parts.items() if f in name)
        split = tensors.pop(name).split([*sizes.values()])
        for part, tensor in zip(sizes, split, strict=True):
            tensors[name.replace(fused, part)] = tensor.contiguous()
    save_file(tensors, theirs / SINGLE, {"format": "pt"})
    return ours, theirs


@torch.no_grad()
def logits(folder):
    return AutoModelForCausalLM.from_pretrained(folder)(IDS).logits


def test_longrope_keeps_the_heads(longrope, tmp_path):
    checkpoint = Checkpoint(longrope)
    assert lattice(checkpoint).attention == [4]
    fewer = Plan([{"attention": [0, 2], "ffn": [*range(48)]}] * 3)
    with pytest.raises(InputError, match=r"cannot be cut: .*longrope"):
        write(checkpoint, fewer, tmp_path / "out")
    config = json.loads((longrope / "config.json").read_text())
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StrictDataclassClassValidationError, match="short_factor"):
        AutoConfig.from_pretrained(tmp_path)


def test_longrope_is_kept_as_it_is(longrope, tmp_path):
    checkpoint = Checkpoint(longrope)
    assert torch.equal(next(BlockStream(checkpoint).logits([IDS])), logits(longrope))
    whole = Plan([{g: [*range(n)] for g, n in checkpoint.units.items()}] * 3)
    write(checkpoint, whole, tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), logits(longrope))


def test_partial_rotary_embeddings(make_checkpoint, tmp_path):
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    folder = make_checkpoint(tmp_path / "model", "phi3", head_dim=8, rope_parameters=rope)
    checkpoint = Checkpoint(folder)
    assert torch.equal(next(BlockStream(checkpoint).logits([IDS])), logits(folder))
    assert lattice(checkpoint).attention == [1, 2, 3, 4]
    plan = Plan([{"attention": [0, 1, 3], "ffn": [*range(3, 40)]}] * 3)
    for layout in ("uniform", "padded"):
        write(checkpoint, plan, tmp_path / layout, layout)
    config = json.loads((tmp_path / "uniform/config.json").read_text())
    assert config["partial_rotary_factor"] == config["rope_parameters"]["partial_rotary_factor"]
    torch.testing.assert_close(logits(tmp_path / "uniform"), logits(tmp_path / "padded"))


@pytest.mark.parametrize(
    ("method", "mode"),
    [
        (m.name, mode.replace(":a", ":0.5"))
        for m in METHODS.values()
        for mode in m.modes
        if CHANNELS in m.units
    ],
)
def test_scores_are_those_of_the_same_model_unfused(pair, method, mode):
    tokens = TokenSet([torch.arange(3, 30), torch.arange(40, 80)])
    if method == "random":
        return
    (ours, theirs), seen = pair, []
    for folder in (ours, theirs):
        stream = BlockStream(Checkpoint(folder), dtype=torch.float64)
        seen.append(score(Checkpoint(folder), method, mode, tokens, stream).blocks)
    for mine, other in zip(*seen, strict=True):
        for group in mine:
            torch.testing.assert_close(mine[group], other[group], rtol=1e-4, atol=1e-7)
