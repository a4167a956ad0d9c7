"""What cannot be is refused from Python in a sentence, before any work."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import compressor
from compressor.errors import InputError


def test_a_module_of_no_family_is_refused(ids):
    with pytest.raises(InputError, match="the Linear in memory has no config of transformers"):
        compressor.score(torch.nn.Linear(2, 2), ids)


def test_an_unknown_type_is_refused(make_unknown, ids):
    with pytest.raises(InputError, match="The model type 'mpt' is not supported"):
        compressor.score(make_unknown, ids)


@pytest.fixture
def make_unknown():
    from transformers import MptConfig, MptForCausalLM

    return MptForCausalLM(MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=32))


def test_hooks_are_refused(llama, ids):
    module = AutoModelForCausalLM.from_pretrained(llama)
    module.model.layers[1].mlp.register_forward_hook(lambda m, given, out: out * 2)
    with pytest.raises(InputError, match=r"model.layers.1.mlp of the LlamaForCausalLM .* hooks"):
        compressor.score(module, ids)


def test_a_replaced_forward_is_refused(llama, ids):
    module = AutoModelForCausalLM.from_pretrained(llama)
    module.model.norm.forward = lambda x: x
    with pytest.raises(InputError, match=r"model.norm of .* has a forward of its own"):
        compressor.score(module, ids)


def test_weights_that_are_not_there_are_refused(llama, ids):
    module = AutoModelForCausalLM.from_pretrained(llama).to("meta")
    with pytest.raises(InputError, match="is on the meta device"):
        compressor.score(module, ids)


def test_a_class_of_ones_own_is_refused(llama, ids):
    class Mine(type(AutoModelForCausalLM.from_pretrained(llama))):
        pass

    with pytest.raises(InputError, match="is not of the class that its config makes"):
        compressor.score(Mine.from_pretrained(llama), ids)


def test_a_plan_for_another_model_is_refused(llama, random_family, ids, tmp_path):
    plan = compressor.plan(compressor.score(llama, ids), keep=0.8)
    other = AutoModelForCausalLM.from_pretrained(random_family("gpt2"), dtype="auto")
    with pytest.raises(InputError, match=r"The plan was made for .* units of"):
        compressor.cut(other, plan)
    small = compressor.cut(llama, plan)
    with pytest.raises(InputError, match=r"The plan was made for .* units of"):
        compressor.repair(small, other, ids)


def test_what_was_cut_must_be_known(loaded, ids):
    with pytest.raises(
        InputError, match="It is not known how the LlamaForCausalLM in memory was cut"
    ):
        compressor.repair(loaded, loaded, ids)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(2, 8, dtype=torch.long, device="meta"), "The tokens are on meta"),
        (torch.full((2, 40), 500), "the token id 500, and the embedding has 120 rows"),
        (torch.full((2, 40), -1), "the token id -1, and"),
        (torch.zeros(2, 4000, dtype=torch.long), "a row of 4000 tokens, and the LlamaForCausalLM"),
        (torch.zeros(2, 8), "Token ids are whole numbers"),
        (torch.zeros(0, 8, dtype=torch.long), "There are no tokens"),
        (None, "looks at activations"),
        ("stdlib", "has no tokenizer"),
        (7, "Token ids are"),
    ],
)
def test_tokens_that_cannot_be_are_refused(loaded, rows, message):
    with pytest.raises(InputError, match=message):
        compressor.score(loaded, rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_memory": -5}, "--max-memory is a number of bytes"),
        ({"dtype": "int4"}, "--dtype is auto"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"method": "hywia:magic"}, "has no mode 'magic'"),
        ({"method": "magic"}, "'magic' is not one of"),
        ({"select": "magic"}, "--select is score or obs"),
        ({"seed": "1"}, "--seed must be a whole number, not '1'"),
        ({"keep": 0.5}, "There is no option 'keep' here"),
        ({"samples": 4}, "samples is for texts; token ids are taken as they are"),
    ],
)
def test_options_that_cannot_be_are_refused(loaded, ids, options, message):
    with pytest.raises(InputError, match=message):
        compressor.score(loaded, ids, **options)


def test_an_existing_folder_is_not_replaced(loaded, ids, tmp_path):
    with pytest.raises(InputError, match="exists; name a new folder"):
        compressor.save(loaded, tmp_path)


def test_no_path_and_no_module_is_refused(ids):
    with pytest.raises(InputError, match="A model is the path of a folder or a module"):
        compressor.score(7, ids)


def test_unknown_options_are_named(llama, ids):
    with pytest.raises(InputError, match="There is no option 'kep'"):
        compressor.plan(compressor.score(llama, ids), kep=0.7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "0.8"}, "A share to keep is a number between 0 and 1, not '0.8'"),
        ({"keep": [0.8, 0.7]}, "A plan has one target"),
        ({"keep": 0.8, "align": 2.5}, "--align must be a whole number, not 2.5"),
        ({"keep": 0.8, "samples": 8}, "There is no option 'samples' here"),
    ],
)
def test_plans_that_cannot_be_are_refused(llama, ids, options, message):
    scores = compressor.score(llama, method="magnitude")
    with pytest.raises(InputError, match=message):
        compressor.plan(scores, **options)


def test_values_of_another_kind_are_refused(llama, loaded):
    scores = compressor.score(loaded, method="magnitude")
    with pytest.raises(InputError, match=r"Give a compressor\.Scores, not a dict"):
        compressor.plan({}, keep=0.8)
    with pytest.raises(InputError, match=r"Give a compressor\.Plan, not a Scores"):
        compressor.cut(llama, scores)
    halves = compressor.plan(scores, keep=0.8)
    halves.blocks[0]["ffn"][-1] -= 0.5
    with pytest.raises(InputError, match="not a sorted, non-empty list of indices"):
        compressor.cut(llama, halves)
    scores.source, scores.about["source"] = None, "the LlamaForCausalLM in memory"
    with pytest.raises(InputError, match="is no folder here; give it as `model`"):
        compressor.plan(scores, keep=0.8)


class Doubled(torch.nn.Module):
    def forward(self, x):
        return 2 * x


def another_class(model) -> None:
    model.model.layers[0].mlp.act_fn = Doubled()


def another_number(model) -> None:
    model.model.layers[1].self_attn.scaling *= 2


@pytest.mark.parametrize("change", [another_class, another_number])
def test_a_changed_module_is_refused(llama, ids, change):
    model = AutoModelForCausalLM.from_pretrained(llama)
    change(model)
    with pytest.raises(InputError, match="has another class, or another number in it"):
        compressor.score(model, ids)


def test_a_model_without_its_head_is_refused(loaded, ids):
    with pytest.raises(InputError, match="has no head; give a LlamaForCausalLM"):
        compressor.score(loaded.model, ids)
