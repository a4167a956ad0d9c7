"""What cannot be mended, or not without an answer: said in a sentence, and nothing is written."""

import json
import shutil

import pytest
import torch
from edits import edit_config, edit_tensors
from safetensors.torch import load_file, save_file
from spoiled import as_shards, narrow_heads
from transformers import AutoModelForCausalLM

from compressor.errors import InputError
from compressor.model.tensors import INDEX, SINGLE

SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
HEAD = "lm_head.weight"


def whole_model(folder):
    """As LLM-Pruner saves it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.save({"model": model, "tokenizer": None}, folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def no_state_dict(folder):
    torch.save([1, 2], folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def two_pickles(folder):
    for name in ("first.pt", "second.pt"):
        torch.save(load_file(folder / SINGLE), folder / name)
    (folder / SINGLE).unlink()


def lost_pickle(folder):
    (folder / SINGLE).unlink()
    places = {"model.norm.weight": "pytorch_model-00001-of-00001.bin"}
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))


def lost_shard(folder):
    placed = as_shards(folder, SHARDS)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / SHARDS[1]).unlink()


def lost_shard_and_index(folder):
    as_shards(folder, SHARDS)
    (folder / SHARDS[1]).unlink()


def outside(folder):
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../other.safetensors"}}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / SINGLE).unlink()


def two_models(folder):
    whole = load_file(folder / SINGLE)
    placed = as_shards(folder, SHARDS)
    whole["model.norm.weight"] += 1
    save_file(whole, folder / SINGLE)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def two_variants(folder):
    shutil.copy(folder / SINGLE, folder / "ema.safetensors")
    (folder / SINGLE).rename(folder / "model.fp16.safetensors")


def adapter(folder):
    (folder / "adapter_config.json").write_text("{}")
    save_file({"lora_B.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")


def adapter_with_more(folder):
    """Its LoRAs are zero, and a norm was trained beside them."""
    (folder / "adapter_config.json").write_text("{}")
    tensors = {"a.lora_A.weight": torch.ones(2, 2), "a.lora_B.weight": torch.zeros(2, 2)}
    save_file(tensors | {"norm.weight": torch.ones(2)}, folder / "adapter_model.safetensors")


def no_head(folder):
    edit_tensors(folder, lambda tensors: tensors.pop(HEAD))


def rows(folder):
    edit_tensors(folder, lambda tensors: tensors.update({HEAD: tensors[HEAD][:99].clone()}))


def two_ropes(folder):
    edit_config(folder, rope_theta=500000.0)
    edit_config(folder, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})


def no_whole_heads(folder):
    edit_tensors(folder, lambda t: [narrow_heads(t, block, 2, 7) for block in range(3)])


def value_head(folder):
    edit_config(folder, vocab_size=99)
    edit_tensors(folder, lambda tensors: tensors.update({"v_head.weight": torch.ones(1, 32)}))


def no_config(folder):
    (folder / "config.json").unlink()


def quantised(folder):
    edit_config(folder, quantization_config={"quant_method": "gptq"})


def unknown(folder):
    edit_config(folder, model_type="jamba")


def no_tokenizer(folder):
    edit_config(folder, vocab_size=99)
    for file in folder.glob("tokenizer*"):
        file.unlink()


REFUSED = {
    whole_model: r"no state dict.*not opened.*torch\.save\(model\.state_dict\(\).*LLM-Pruner",
    no_state_dict: r"holds a list and no state dict",
    two_pickles: r"first\.pt, second\.pt.*Which of them",
    lost_pickle: r"pytorch_model-00001-of-00001\.bin is not here; download",
    lost_shard: r"names model-00002-of-00003\.safetensors, which is not here.*missing; download",
    lost_shard_and_index: r"Of 3 files number 2 is missing",
    outside: r"outside the folder",
    two_models: r"model\.norm\.weight is not the same in both",
    two_variants: r"Which of them are the model",
    adapter: r"cannot be seen.*--merged",
    adapter_with_more: r"cannot be seen.*--merged",
    no_head: r"There is no lm_head\.weight.*--tied",
    rows: r"lm_head\.weight has 99 rows",
    two_ropes: r"rope_theta 500000 and, in rope_parameters, 10000.*--rope rope_scaling or",
    no_whole_heads: r"14 channels of queries.*--head-dim",
    value_head: r"holds v_head\.weight",
    no_config: r"has no config\.json; without it",
    quantised: r"quantised weights",
    unknown: r"'jamba' is not supported",
    no_tokenizer: r"has no tokenizer",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_it_is_refused(folder, cure, spoil):
    spoil(folder)
    with pytest.raises(InputError, match=f"(?s){REFUSED[spoil]}"):
        cure()
    assert [p.name for p in folder.parent.iterdir()] == ["folder"]


def test_heads_that_a_class_fixes(folder, cure, make_checkpoint):
    shutil.rmtree(folder)
    make_checkpoint(folder, "gpt2", intermediate_size=128, tie_word_embeddings=True)
    edit_config(folder, n_embd=40)
    with pytest.raises(InputError, match=r"class of gpt2 has hidden size / heads channels"):
        cure()


def test_biases_that_a_class_has_not(folder, cure, make_checkpoint):
    shutil.rmtree(folder)
    make_checkpoint(folder, "mistral")
    name = "model.layers.1.self_attn.o_proj.bias"
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.ones(32)}))
    with pytest.raises(InputError, match=r"class of mistral has no bias in self_attn\.o_proj"):
        cure()


@pytest.mark.parametrize(("size", "said"), [(4, None), (5, r"5 channels \(--head-dim\)")])
def test_a_size_of_heads_that_is_said(folder, cure, size, said):
    edit_tensors(folder, lambda t: [narrow_heads(t, block, 2) for block in range(3)])
    if said is None:
        assert cure(head_dim=size)[0]["report"]["loads"]
        return
    with pytest.raises(InputError, match=said):
        cure(head_dim=size)


def test_what_code_in_a_pickle_would_do(folder, cure, tmp_path):
    """It is not run."""

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    (folder / SINGLE).unlink()
    torch.save({"a": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="no state dict"):
        cure()
    assert not (tmp_path / "touched").exists()
