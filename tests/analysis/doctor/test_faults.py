"""Every fault that is mended: it is named, the result computes what it should, the source stays."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from edits import edit_config, edit_tensors
from safetensors.torch import load_file
from spoiled import (
    FFN,
    GROUPS,
    Case,
    logits,
    narrow_ffn,
    narrow_heads,
)
from spoiled_files import FILES

from compressor.analysis.doctor import EVERY
from compressor.model.checkpoint import Checkpoint
from compressor.model.tensors import SINGLE

BLOCKS = range(3)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def optipfair(folder):
    """Its MLP_GLU pruning of every block, by a version that forgets the config."""
    edit_tensors(folder, lambda t: [narrow_ffn(t, block, FFN) for block in BLOCKS])


def kv_groups(folder):
    edit_tensors(folder, lambda t: [narrow_heads(t, block, GROUPS) for block in BLOCKS])


def no_head_dim(folder):
    """The heads are right, and what a head has is left to hidden size / heads, which is 8."""
    kv_groups(folder)
    edit_config(folder, num_attention_heads=4, num_key_value_heads=2, head_dim=...)


def undivided(folder):
    """Heads that transformers' class does not take."""
    edit_tensors(folder, lambda t: [narrow_heads(t, block, 3) for block in BLOCKS])


def resized(folder):
    edit_config(folder, vocab_size=99)


def hidden(folder):
    edit_config(folder, hidden_size=40, head_dim=...)
    edit_config(folder, head_dim=4)


def blocks(folder):
    edit_config(folder, num_hidden_layers=5)


def dropped(folder):
    """A block is taken out and the rest keep their numbers; here one that adds nothing was."""

    def change(tensors):
        for name in list(tensors):
            if name.startswith("model.layers.2."):
                tensors[name.replace("layers.2.", "layers.4.")] = tensors.pop(name)

    edit_tensors(folder, change)


def own_head(folder):
    """The config ties, and the head that is there is another: transformers 5 uses it."""
    edit_config(folder, tie_word_embeddings=True)


def zero_biases(folder):
    def change(tensors):
        for block in BLOCKS:
            tensors[f"model.layers.{block}.self_attn.o_proj.bias"] = torch.zeros(32)

    edit_tensors(folder, change)


def wrong_dtype(folder):
    edit_config(folder, dtype="float16", torch_dtype="float16")


def other_theta(folder):
    """As transformers 5 saves it, and versions before would turn otherwise."""
    edit_config(folder, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})
    edit_config(folder, rope_theta=500000.0)


def padding(folder):
    edit_config(folder, pad_token_id=120)


CASES = (
    *FILES,
    Case(optipfair, "FFN width", {"intermediate_size": FFN}),
    Case(kv_groups, "heads", {"num_attention_heads": 4, "num_key_value_heads": 2}, {"head_dim": 4}),
    Case(no_head_dim, "heads", {"num_attention_heads": 4, "head_dim": 4}, {"head_dim": 4}),
    Case(undivided, "container", {"model_type": "mistral", "num_attention_heads": 6}),
    Case(resized, "vocab_size", {"vocab_size": 120}),
    Case(hidden, "hidden_size", {"hidden_size": 32}),
    Case(blocks, "num_hidden_layers", {"num_hidden_layers": 3}),
    Case(dropped, "blocks' numbers", {"num_hidden_layers": 3}),
    Case(own_head, "head", {"tie_word_embeddings": False}),
    Case(zero_biases, "biases", {"attention_bias": False}),
    Case(wrong_dtype, "dtype", {"dtype": "float32", "torch_dtype": "float32"}),
    Case(other_theta, "rotary settings", {"rope_theta": 10000.0}, {"rope": "rope_parameters"}),
    Case(padding, "padding", {"pad_token_id": None}),
)


def digests(folder) -> dict[str, str]:
    return {p.name: sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_mended(folder, cure, right, case):
    case.spoil(folder)
    before = digests(folder)
    result, out = cure(**case.answers)
    assert case.fault in [each["fault"] for each in result["found"]]
    assert torch.allclose(logits(out), right, atol=1e-5)
    config = json.loads((out / "config.json").read_text())
    assert {key: config.get(key) for key in case.says} == case.says
    assert result["report"]["logits_difference"] < 1e-4 and result["report"]["generated"]
    assert digests(folder) == before
    assert sorted(p.name for p in folder.parent.iterdir()) == ["fixed", "folder"]
    assert [p.name for p in out.glob("*.bin")] + [p.name for p in out.glob("adapter*")] == []
    assert Checkpoint(out).notes == []


def test_every_fault_is_tried():
    assert {case.fault for case in CASES} == {fault.name for fault in EVERY}


def test_what_is_mended_has_no_fault(folder, cure):
    optipfair(folder)
    _, out = cure()
    shutil.rmtree(folder)
    out.rename(folder)
    assert cure()[0] == {"path": str(folder), "out": None, "found": []}
    assert not out.exists()


def test_what_is_said_of_every_block(make_checkpoint, folder, cure):
    """A block between others is taken out, and each keeps its window."""
    shutil.rmtree(folder)
    sizes = {"hidden_size": 48, "head_dim": 6, "num_hidden_layers": 4, "sliding_window": 5}
    make_checkpoint(folder, "gemma2", tie_word_embeddings=True, **sizes)

    def silence(tensors):
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            tensors[f"model.layers.1.{part}.weight"][:] = 0

    edit_tensors(folder, silence)
    expected = logits(folder)

    def drop(tensors):
        for name in [name for name in tensors if name.startswith("model.layers.1.")]:
            del tensors[name]

    edit_tensors(folder, drop)
    kinds = json.loads((folder / "config.json").read_text())["layer_types"]
    assert kinds[0] != kinds[1]
    _, out = cure()
    config = json.loads((out / "config.json").read_text())
    assert config["layer_types"] == [kinds[0], *kinds[2:]] and config["num_hidden_layers"] == 3
    assert torch.allclose(logits(out), expected, atol=1e-5)


def test_a_head_that_is_stored_twice(folder, cure):
    edit_config(folder, tie_word_embeddings=True)
    edit_tensors(folder, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    expected = logits(folder)
    result, out = cure()
    assert "is stored beside it" in result["found"][0]["seen"]
    assert HEAD not in load_file(out / SINGLE) and torch.equal(logits(out), expected)


def test_a_head_that_nobody_ties(folder, cure):
    edit_tensors(folder, lambda tensors: tensors.pop(HEAD))
    _, out = cure(tied=True)
    model = Checkpoint(out)
    assert model.ties and model.tied
    weights = load_file(folder / SINGLE)[EMBEDDING]
    assert torch.equal(load_file(out / SINGLE)[EMBEDDING], weights)


def test_rotary_settings_that_older_versions_misread(make_checkpoint, folder, cure):
    shutil.rmtree(folder)
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    make_checkpoint(folder, rope_parameters=rope)
    edit_config(folder, rope_scaling=None)
    expected = logits(folder)
    result, out = cure()
    assert "it would read rope_theta 10000" in result["found"][0]["seen"]
    config = json.loads((out / "config.json").read_text())
    assert config["rope_theta"] == 5000.0 and config["rope_parameters"] == rope
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert torch.equal(logits(out), expected)


def test_every_fault_is_in_the_guide():
    rows = (Path(__file__).parents[3] / "docs/doctor.md").read_text().splitlines()
    named = {
        name for row in rows if row.startswith("| ") for name in row.split(" | ")[0][2:].split(", ")
    }
    assert {fault.name for fault in EVERY} == named - {"fault", "---"}
