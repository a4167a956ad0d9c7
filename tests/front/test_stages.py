"""The stages from Python: a model in memory gives what its folder gives, bit for bit."""

import pytest
import torch
from jobs import compress as command
from transformers import AutoModelForCausalLM

import compressor
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


@pytest.mark.fresh_process
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


def test_what_breaks_off_leaves_nothing(llama, ids, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("No space left on device")

    plan = compressor.plan(compressor.score(llama, ids), keep=0.8)
    monkeypatch.setattr("compressor.front.stages.write_record", fails)
    with pytest.raises(OSError, match="No space"):
        compressor.cut(llama, plan, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_torchs_own_names_of_devices_and_dtypes(llama, ids):
    known = compressor.score(llama, ids, device="cpu", dtype="float32")
    same_scores = compressor.score(llama, ids, device=torch.device("cpu"), dtype=torch.float32)
    assert torch.equal(known.blocks[0]["ffn"], same_scores.blocks[0]["ffn"])
