"""Baichuan 7B read as Llama: its own names and config, its packed projections, its normalised head."""

import json
import shutil

import pytest
import torch
from jobs import compress
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from compressor.analysis.estimate.measuring import measure
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.families.rotary_baichuan import BAICHUAN2_VOCABULARY
from compressor.model.stream import BlockStream
from compressor.model.tensors import INDEX, SINGLE
from compressor.verification.child import verify_here

IDS = torch.arange(3, 40)[None]
CODE = "raise SystemExit('run')\n"


def baichuan(llama, **changes):
    """Make of a Llama folder what Baichuan's is like on the hub; its code must not be run."""
    config = json.loads((llama / "config.json").read_text())
    for name in (
        "num_key_value_heads",
        "head_dim",
        "rope_parameters",
        "mlp_bias",
        "attention_bias",
    ):
        config.pop(name, None)
    config |= {
        "model_type": "baichuan",
        "architectures": ["BaiChuanForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_baichuan.BaiChuanConfig",
            "AutoModelForCausalLM": "modeling_baichuan.BaiChuanForCausalLM",
        },
    }
    (llama / "config.json").write_text(json.dumps(config | changes))
    file = llama / "tokenizer_config.json"
    tokenizer = json.loads(file.read_text()) | {
        "tokenizer_class": "BaiChuanTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaiChuanTokenizer", None]},
    }
    file.write_text(json.dumps(tokenizer))
    for stem in ("configuration", "modeling", "tokenization"):
        (llama / f"{stem}_baichuan.py").write_text(CODE)
    for file in llama.glob("*.safetensors"):
        tensors = load_file(file)
        for name in [n for n in tensors if n.endswith("q_proj.weight")]:
            parts = [tensors.pop(name.replace("q_proj", f"{x}_proj")) for x in "qkv"]
            tensors[name.replace("q_proj", "W_pack")] = torch.cat(parts)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
        save_file(tensors, file, {"format": "pt"})
    return llama


@pytest.fixture(scope="module")
def pair(make_checkpoint, tmp_path_factory):
    """A Baichuan folder, and the Llama one of the same tensors."""
    root = tmp_path_factory.mktemp("baichuan")
    plain = make_checkpoint(root / "llama", num_key_value_heads=8)
    return baichuan(make_checkpoint(root / "baichuan", num_key_value_heads=8)), plain


@torch.no_grad()
def logits(folder, ids=IDS):
    return AutoModelForCausalLM.from_pretrained(folder)(ids).logits


def test_it_is_llama(pair):
    ours, theirs = map(Checkpoint, pair)
    assert ours.family.model_type == "llama"
    assert (ours.units, ours.parameters, ours.bytes) == (
        theirs.units,
        theirs.parameters,
        theirs.bytes,
    )
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.read(ours.tensors).items():
        assert torch.equal(tensor, theirs.read([name])[name]), name
        entry = ours.tensors[name]
        with entry.file.open("rb") as file:
            file.seek(entry.begin)
            stored = file.read(entry.end - entry.begin)
        assert stored == tensor.numpy().tobytes()
    assert torch.equal(next(BlockStream(ours).logits([IDS])), logits(pair[1]))


@pytest.mark.parametrize(
    ("arguments", "container"),
    [
        (["--keep-blocks", 0.6], "mistral"),
        pytest.param(
            ["--keep-blocks", 0.6, "--container", "llama"], "llama", marks=pytest.mark.slow
        ),
        pytest.param(
            ["--keep-blocks", 0.6, "--layout", "per-layer", "--protect", 0],
            "mistral",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_result_is_stock(pair, text_file, tmp_path, arguments, container):
    source, _ = pair
    out = tmp_path / "out"
    given = ["--samples", 6, "--length", 24, "--calibration", text_file, "--max-perplexity-ratio"]
    assert compress(source, out, *given, "off", *arguments) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == container
    assert ("auto_map" in config) == ("per-layer" in arguments)
    assert not [f for f in out.glob("*.py") if f.name != "modeling_per_layer.py"]
    assert verify_here(out, source)["logits_difference"] <= 1e-3
    ids = Checkpoint(source).tokenizer()("A quick fox.")["input_ids"]
    assert AutoTokenizer.from_pretrained(out)("A quick fox.")["input_ids"] == ids


def test_the_normalised_head_is_folded(make_checkpoint, tmp_path):
    sizes = {"num_key_value_heads": 8, "vocab_size": BAICHUAN2_VOCABULARY, "num_hidden_layers": 1}
    plain = make_checkpoint(tmp_path / "llama", **sizes)
    source = baichuan(make_checkpoint(tmp_path / "baichuan", **sizes))
    tensors = load_file(plain / SINGLE)
    head = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = head / head.norm(dim=1, keepdim=True)
    save_file(tensors, plain / SINGLE, {"format": "pt"})
    found = next(BlockStream(Checkpoint(source)).logits([IDS[:, :5]]))
    torch.testing.assert_close(found, logits(plain, IDS[:, :5]))
    assert not torch.equal(tensors["lm_head.weight"], head)


def test_alibi_is_another_model(pair, tmp_path):
    config = json.loads((pair[0] / "config.json").read_text())
    config["model_max_length"] = config.pop("max_position_embeddings")
    other = shutil.copytree(pair[0], tmp_path / "other")
    (other / "config.json").write_text(json.dumps(config))
    assert Checkpoint(other).family.alibi and not Checkpoint(pair[0]).family.alibi


def test_tensors_of_another_shape(make_checkpoint, tmp_path):
    source = baichuan(make_checkpoint(tmp_path / "odd", num_key_value_heads=8))
    tensors = load_file(source / SINGLE)
    name = "model.layers.1.self_attn.W_pack.weight"
    tensors[name] = tensors[name][:-3]
    save_file(tensors, source / SINGLE, {"format": "pt"})
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.q_proj.* \[31, 32\].* \[32, 32\]"):
        Checkpoint(source)


def test_packed_tensors_in_shards(pair, tmp_path):
    tensors = load_file(pair[0] / SINGLE)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((pair[0] / name).read_bytes())
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in {*files.values()}:
        save_file({n: t for n, t in tensors.items() if files[n] == file}, tmp_path / file)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    found = next(BlockStream(Checkpoint(tmp_path)).logits([IDS]))
    assert torch.equal(found, logits(pair[1]))


def test_what_needs_its_code_is_refused(pair, tmp_path):
    with pytest.raises(InputError, match="runs by code of its own alone"):
        measure(Checkpoint(pair[0]), "cpu", 1, 4)
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in pair[0].iterdir():
        if file.name != "tokenizer.json":
            (bare / file.name).write_bytes(file.read_bytes())
    with pytest.raises(
        InputError, match=r"code of its own, which is not run; save it as tokenizer\.js"
    ):
        Checkpoint(bare).tokenizer()
