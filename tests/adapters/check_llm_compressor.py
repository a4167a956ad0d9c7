"""`make adapters`: llm-compressor cuts and quantises a Llama in one recipe; transformers loads it."""

import pytest
import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

import compressor
from compressor.adapters.llm_compressor import StructuredPruningModifier
from compressor.errors import InputError
from compressor.front.stages import CUT

TEXT = {"samples": 16, "length": 32}
CUTTING = {"keep": 0.8, "repair": "ridge", "align": 8}
GROUPS_OF_8 = {
    "num_bits": 4,
    "type": "int",
    "strategy": "group",
    "group_size": 8,
    "symmetric": True,
}


def quantising(scheme: str):
    """The modifier that quantises: matrices of 32 rows are too narrow for W4A16's groups of 128."""
    if scheme == "W8A8":
        return QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"])
    groups = {"group_0": {"targets": ["Linear"], "weights": GROUPS_OF_8}}
    return GPTQModifier(config_groups=groups, ignore=["lm_head"])


def opened(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def data(llama, text_file) -> DataLoader:
    """The sequences that a job calibrates on, padded to one length."""
    rows = compressor.tokens(str(text_file), llama, **TEXT).sequences
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    real = torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])
    return DataLoader(
        [{"input_ids": i, "attention_mask": r.long()} for i, r in zip(ids, real, strict=True)],
        batch_size=4,
    )


@pytest.mark.parametrize("scheme", ["W4A16", "W8A8"])
def test_cut_and_quantised_in_one_recipe(llama, text_file, data, tmp_path, scheme):
    """The files have what our own job and the same quantisation after it give, bit for bit."""
    model = opened(llama)
    given = oneshot(
        model=model,
        recipe=[StructuredPruningModifier(**CUTTING), quantising(scheme)],
        dataset=data,
        output_dir=str(tmp_path / "one"),
    )
    assert given is model
    texts = {"calibration": str(text_file), "evaluation": "none", **TEXT}
    (result,) = compressor.compress(
        llama, tmp_path / "cut", container="llama", verify=False, **texts, **CUTTING
    )
    cut = opened(tmp_path / "cut")
    oneshot(model=cut, recipe=[quantising(scheme)], dataset=data, output_dir=str(tmp_path / "two"))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert {*one} == {*two} and all(torch.equal(one[name], two[name]) for name in one)

    loaded, ids = opened(tmp_path / "one"), torch.arange(3, 43).view(2, 20)
    config, units = loaded.config, getattr(model, CUT)["plan"]["blocks"][0]
    assert config.model_type == "llama" and config.quantization_config is not None
    assert config.intermediate_size == len(units["ffn"]) < 48
    assert config.num_key_value_heads == len(units["attention"])
    assert config.num_attention_heads == 2 * config.num_key_value_heads
    assert result.parameters_after == sum(p.numel() for p in opened(tmp_path / "cut").parameters())
    torch.testing.assert_close(loaded(ids).logits, opened(tmp_path / "two")(ids).logits)
    drift = (loaded(ids).logits - opened(tmp_path / "cut")(ids).logits).norm()
    assert 0 < drift / loaded(ids).logits.norm() < 0.3  # quantised, and no other model
    assert loaded.generate(ids[:1], max_new_tokens=4, min_new_tokens=4).shape == (1, 24)


def test_a_cut_alone_by_measured_errors(llama, data, tmp_path):
    model = opened(llama)
    recipe = [StructuredPruningModifier(keep_blocks=0.7, allocate="exact", repair="none")]
    oneshot(model=model, recipe=recipe, dataset=data, output_dir=str(tmp_path / "out"))
    assert getattr(model, CUT)["plan"]["about"]["held_back"]["rows"]
    ids, loaded = torch.arange(3, 43).view(2, 20), opened(tmp_path / "out")
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert sum(p.numel() for p in loaded.parameters()) < sum(
        p.numel() for p in opened(llama).parameters()
    )


def test_what_cannot_be(llama, data):
    with pytest.raises(InputError, match="oneshot has none; give it a dataset"):
        oneshot(model=opened(llama), recipe=[StructuredPruningModifier(keep=0.8)])
    late = [quantising("W8A8"), StructuredPruningModifier(keep=0.8)]
    with pytest.raises(
        InputError, match="is to be quantised already; put StructuredPruningModifier"
    ):
        oneshot(model=opened(llama), recipe=late, dataset=data)
    with pytest.raises(ValueError, match="ratio"):
        StructuredPruningModifier(ratio=0.8)
