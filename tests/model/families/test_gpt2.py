"""GPT-2: matrices stored as [in, out], the layout of old files, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compressor.analysis.inspection import inspect
from compressor.errors import InputError
from compressor.job.result import make_record
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.model.tensors import INDEX, SINGLE
from compressor.model.widths import model_widths
from compressor.planning.plan import Plan
from compressor.repairing.streaming import Repair
from compressor.text.tokens import TokenSet
from compressor.verification.child import verify_here
from compressor.writing.cuts import write
from compressor.writing.record import write_record

IDS = torch.arange(3, 27)[None]
KEPT = [*range(0, 128, 3)]
PLAN = Plan([{"attention": [*range(8)], "ffn": KEPT}] * 3)


@pytest.fixture
def old(random_family, tmp_path):
    """A folder as the first ones on the hub: masks among the tensors, no `n_inner`, several shards."""
    source, folder = random_family("gpt2"), tmp_path / "old"
    folder.mkdir()
    tensors = load_file(source / SINGLE)
    config = json.loads((source / "config.json").read_text())
    assert config.pop("n_inner") == 4 * config["n_embd"]
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())
    for block in range(3):
        tensors[f"h.{block}.attn.bias"] = torch.ones(1, 1, 96, 96, dtype=torch.uint8).tril()
        tensors[f"h.{block}.attn.masked_bias"] = torch.tensor(-1e4)
    files = {n: f"model-0000{1 + ('h.1.' in n)}-of-00002.safetensors" for n in tensors}
    for file in {*files.values()}:
        save_file({n: t for n, t in tensors.items() if files[n] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


@torch.no_grad()
def logits(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()(IDS, use_cache=False).logits


def test_matrices_are_read_as_linear_has_them(random_family):
    folder = random_family("gpt2")
    checkpoint, stored = Checkpoint(folder), load_file(folder / SINGLE)
    shapes = {"attn.c_attn": [96, 32], "attn.c_proj": [32, 32], "mlp.c_fc": [128, 32]}
    for module, shape in (shapes | {"mlp.c_proj": [32, 128]}).items():
        name = checkpoint.block_name(1, f"{module}.weight")
        tensor = checkpoint.read([name])[name]
        assert checkpoint.tensors[name].shape == list(tensor.shape) == shape
        assert torch.equal(tensor, stored[f"h.1.{module}.weight"].t())
        assert torch.equal(checkpoint.as_stored(name, tensor).t(), tensor)
    positions = checkpoint.read(["transformer.wpe.weight"])["transformer.wpe.weight"]
    assert torch.equal(positions, stored["wpe.weight"])


@pytest.mark.parametrize("setting", [None, "scale_attn_by_inverse_layer_idx", "scale_attn_weights"])
def test_old_files_stream_bit_for_bit(old, setting):
    if setting:
        config = json.loads((old / "config.json").read_text())
        (old / "config.json").write_text(json.dumps(config | {setting: setting[-1] == "x"}))
    (found,) = BlockStream(Checkpoint(old)).logits([IDS])
    assert torch.equal(found, logits(old))


def test_old_files_are_cut(old, tmp_path):
    checkpoint, out = Checkpoint(old), tmp_path / "out"
    assert checkpoint.units == {"attention": 8, "ffn": 128}
    write(checkpoint, PLAN, out, shard_bytes=20_000)
    assert json.loads((out / "config.json").read_text())["n_inner"] == len(KEPT)
    source = {n: t for file in old.glob("*.safetensors") for n, t in load_file(file).items()}
    written = {n: t for file in out.glob("*.safetensors") for n, t in load_file(file).items()}
    assert {f"transformer.{n}" for n in source if ".attn.bias" not in n and "masked" not in n} == {
        *written
    }
    for name, tensor in written.items():
        expected = source[name.removeprefix("transformer.")]
        if "c_fc" in name:
            expected = expected[..., KEPT]
        elif "mlp.c_proj.weight" in name:
            expected = expected[KEPT]
        assert torch.equal(tensor, expected), name
    write_record(out, make_record(checkpoint, PLAN, "uniform", "gpt2", None))
    assert verify_here(out, old)["logits_difference"] <= 1e-3


def test_old_files_are_inspected(old):
    result = inspect(old)
    assert not result["problems"]
    assert result["parameters"] == Checkpoint(old).parameters
    block = model_widths(Checkpoint(old)).blocks[0]
    assert (block.query, block.key_value, block.ffn, block.ffn_inputs) == (32, 32, 128, 1)


def test_repair_after_heads_are_masked(random_family, tmp_path):
    """The blocks of the cut path split what fewer heads give; the padded ones load as they were."""
    checkpoint = Checkpoint(random_family("gpt2"))
    plan = Plan([{"attention": [0, 3, 4, 7], "ffn": KEPT}] * 3)
    texts = TokenSet([torch.randint(3, 100, (20,)) for _ in range(12)])
    repair, out = Repair(BlockStream(checkpoint), plan, texts, "ridge"), tmp_path / "padded"
    write(checkpoint, plan, out, "padded", changes=repair.blocks())
    assert any(block["tensors"] for block in repair.record)
    write_record(out, make_record(checkpoint, plan, "padded", "gpt2", repair))
    assert verify_here(out, checkpoint.path)["logits_difference"] <= 1e-3


def test_a_decoder_of_an_encoder_is_refused(make_checkpoint, tmp_path):
    folder = make_checkpoint(tmp_path / "m", "gpt2", add_cross_attention=True)
    with pytest.raises(InputError, match=r"cannot be cut.*add_cross_attention"):
        Checkpoint(folder)
