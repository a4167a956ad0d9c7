"""The stages from Python: a model in memory gives what its folder gives, bit for bit."""

import pytest
import torch
from jobs import compress as command
from transformers import AutoModelForCausalLM

import compressor
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.loaded_model import LoadedModel
from compressor.model.per_layer import has_uniform
from compressor.planning.plan import Plan
from compressor.writing.cuts import writer_of
from compressor.writing.in_memory import build


def in_memory(folder):
    """The model as a user loads it; the class that the package brings where transformers has none."""
    source = Checkpoint(folder)
    if source.family.stock:
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return build(writer_of(source, Plan.whole(source), "per-layer"))


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(3, 110, (6, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def loaded(llama):
    return AutoModelForCausalLM.from_pretrained(llama, dtype="auto")


def same(one, other) -> bool:
    """Whether two sources are of the same tensors."""
    assert {*one.tensors} == {*other.tensors}
    mine, theirs = one.read(one.tensors), other.read(other.tensors)
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def same_scores(one, other) -> bool:
    return all(
        torch.equal(block[group], theirs[group])
        for block, theirs in zip(one.blocks, other.blocks, strict=True)
        for group in block
    )


def test_every_family_in_memory_is_its_folder(every_family, ids, tmp_path):
    module = in_memory(every_family)
    assert same(LoadedModel(module), Checkpoint(every_family))
    family = Checkpoint(every_family).family
    layout = "uniform" if has_uniform(family) else "per-layer"
    scores = compressor.score(module, ids)
    assert same_scores(scores, compressor.score(every_family, ids))
    plan = compressor.plan(scores, keep_blocks=0.7, layout=layout)
    assert (
        plan.blocks == compressor.plan(scores, every_family, keep_blocks=0.7, layout=layout).blocks
    )
    small = compressor.cut(module, plan, layout=layout)
    folder = compressor.cut(every_family, plan, tmp_path / "cut", layout=layout)
    assert same(LoadedModel(small), Checkpoint(folder))
    kept = in_memory(folder) if small.__class__.__name__[:8] != "PerLayer" else None
    if kept is not None:
        with torch.no_grad():
            assert torch.equal(small(input_ids=ids).logits, kept(input_ids=ids).logits)
    assert same(Checkpoint(compressor.save(small, tmp_path / "saved")), Checkpoint(folder))
    assert compressor.evaluate(small, ids) == compressor.evaluate(folder, ids)


@pytest.mark.parametrize("kind", ["ridge", "refine:2"])
def test_a_repair_in_memory_is_that_of_the_folder(any_family, equal_layout, ids, tmp_path, kind):
    module = in_memory(any_family)
    plan = compressor.plan(compressor.score(module, ids), keep_blocks=0.7, layout=equal_layout)
    small = compressor.cut(module, plan, layout=equal_layout)
    folder = compressor.cut(any_family, plan, tmp_path / "cut", layout=equal_layout)
    mended = compressor.repair(small, module, ids, kind)
    written = compressor.repair(folder, any_family, ids, kind, tmp_path / "mended")
    assert same(LoadedModel(mended), Checkpoint(written))
    assert not same(LoadedModel(mended), LoadedModel(small))


@pytest.mark.parametrize("allocate", ["exact", "measured", "besa"])
def test_allocations_measure_on_a_text(llama, loaded, ids, allocate):
    options = {"keep_blocks": 0.7, "allocate": allocate, "layout": "per-layer", "repair": "none"}
    plans = [
        compressor.plan(compressor.score(model, ids, select="score"), text=ids, **options)
        for model in (llama, loaded)
    ]
    assert plans[0].blocks == plans[1].blocks and "held_back" in plans[0].about


def test_no_repair_is_the_cut(llama, loaded, ids):
    small = compressor.cut(llama, compressor.plan(compressor.score(llama, ids), keep=0.8))
    left = compressor.repair(small, loaded, ids, "none")
    assert same(LoadedModel(left), LoadedModel(small))


def test_what_is_saved_is_verified(llama, loaded, ids, tmp_path):
    """With a tokenizer it loads in a fresh process, and computes what its source does without units."""
    tokenizer = Checkpoint(llama).tokenizer()
    plan = compressor.plan(compressor.score(loaded, method="magnitude"), keep=0.8)
    small = compressor.cut(loaded, plan)
    found = compressor.verify(compressor.save(small, tmp_path / "out", tokenizer), llama)
    assert found["logits_difference"] < 1e-4
    assert compressor.inspect(small)["parameters"] == Checkpoint(tmp_path / "out").parameters


def test_a_head_of_its_own_under_a_config_that_ties_it(llama, ids, tmp_path):
    """It is used, as of a folder, and what is written is untied."""
    module = AutoModelForCausalLM.from_pretrained(llama, dtype="auto")
    module.config.tie_word_embeddings = True
    source = LoadedModel(module)
    assert not source.tied and "of other values" in source.notes[0]
    written = Checkpoint(compressor.save(module, tmp_path / "out"))
    assert same(written, source) and written.written_config["tie_word_embeddings"] is False
    assert compressor.evaluate(written, ids) == compressor.evaluate(llama, ids)


def test_the_source_stays_as_it_is(llama, loaded, ids):
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    small = compressor.cut(loaded, compressor.plan(compressor.score(loaded, ids), keep=0.8))
    small.get_input_embeddings().weight.data.zero_()
    assert all(torch.equal(t, before[n]) for n, t in loaded.state_dict().items())


def test_the_command_and_python_give_the_same_bytes(llama, quick, text_file, tmp_path):
    assert command(llama, tmp_path / "command", "--keep", 0.8, *quick) == 0
    options = {"calibration": str(text_file), "length": 32, "samples": 4, "verify": False}
    (result,) = compressor.compress(llama, tmp_path / "python", keep=0.8, **options)
    assert result.parameters_after == Checkpoint(tmp_path / "python").parameters
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        command_s, python_s = (tmp_path / n / name for n in ("command", "python"))
        assert command_s.read_bytes() == python_s.read_bytes()


def test_scores_and_plans_are_files(llama, ids, tmp_path):
    compressor.score(llama, ids).save(tmp_path / "s.safetensors")
    plan = compressor.plan(compressor.Scores.load(tmp_path / "s.safetensors"), keep=0.8)
    plan.save(tmp_path / "p.json")
    assert compressor.Plan.load(tmp_path / "p.json").blocks == plan.blocks


def test_a_text_is_read_as_the_command_reads_it(llama, text_file):
    found = compressor.tokens(str(text_file), llama, samples=4, length=32)
    assert len(found.sequences) == 4 and all(len(row) <= 32 for row in found.sequences)
    assert same_scores(compressor.score(llama, found), compressor.score(llama, found.sequences))


# -- bad input ---------------------------------------------------------------------------------------


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
    other = in_memory(random_family("gpt2"))
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


def test_what_breaks_off_leaves_nothing(llama, ids, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("No space left on device")

    plan = compressor.plan(compressor.score(llama, ids), keep=0.8)
    monkeypatch.setattr("compressor.front.stages.write_record", fails)
    with pytest.raises(OSError, match="No space"):
        compressor.cut(llama, plan, tmp_path / "out")
    assert not list(tmp_path.iterdir())


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


def test_torchs_own_names_of_devices_and_dtypes(llama, ids):
    known = compressor.score(llama, ids, device="cpu", dtype="float32")
    same_scores = compressor.score(llama, ids, device=torch.device("cpu"), dtype=torch.float32)
    assert torch.equal(known.blocks[0]["ffn"], same_scores.blocks[0]["ffn"])


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
