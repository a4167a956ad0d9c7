"""`--granularity weight`: the whole job, what it writes, and what its verification sees."""

import json

import pytest
import torch
from edits import edit_tensors
from jobs import compress

from compressor.config.sparse import METHODS, Learning, Recipe
from compressor.errors import VerificationError
from compressor.model.checkpoint import Checkpoint
from compressor.model.modules import make_linear
from compressor.model.stream import BlockStream
from compressor.sparse import stream as stream_module
from compressor.sparse.stream import Sparsification
from compressor.verification.child import verify_here


def sequences(count: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 110, (20 + i,), generator=generator) for i in range(count)]


def pruned(folder, recipe: Recipe, dtype=None, saved=None):
    """All blocks' new weights, the record and the prompts' logits."""
    stream = BlockStream(Checkpoint(folder), dtype=dtype)
    run = Sparsification(stream, sequences(), recipe, sequences(2), saved)
    blocks = list(run.blocks())
    return blocks, run.record, run.logits()


RECIPES = [
    Recipe("magnitude", 0.5),
    Recipe("wanda", 0.5),
    Recipe("sparsegpt", 0.5),
    Recipe("besa", 0.5),
    Recipe("besa", 0.9, "obs"),
    Recipe("besa", 0.37, besa=Learning("layer", sampling="categorical", target="dense")),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{r.method}-{r.update}-{r.sparsity}")
def test_every_family_has_its_budget_and_its_logits(any_family, recipe):
    """Biases, windows and tied heads: the streamed pruned model is the ordinary one with its weights."""
    checkpoint = Checkpoint(any_family)
    blocks, record, logits = pruned(any_family, recipe)
    weights = sum(t.numel() for t in blocks[0].values())
    sources = [checkpoint.read_block(i) for i in range(checkpoint.blocks)]
    for source, block, entry in zip(sources, blocks, record, strict=True):
        assert set(block) == {*checkpoint.family.projections()}
        zeros = {name: int((tensor == 0).sum()) for name, tensor in block.items()}
        assert zeros == entry["zeros"]
        exact = int(recipe.sparsity * weights)
        if recipe.method == "besa":
            assert sum(zeros.values()) == exact
            assert 0 < entry["error"] < 3
        else:
            assert exact - 32 * 7 <= sum(zeros.values()) <= exact
        if not recipe.corrects:
            assert all(torch.equal(t[t != 0], source[n][t != 0]) for n, t in block.items())
    from transformers import AutoModelForCausalLM

    model = make_linear(AutoModelForCausalLM.from_pretrained(any_family))
    for index, block in enumerate(blocks):
        layer = model.get_submodule(checkpoint.family.layers)[index]
        layer.load_state_dict(block, strict=False)
    for ids, found in zip(sequences(2), logits, strict=True):
        torch.testing.assert_close(found, model(ids[None]).logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe", RECIPES[2:], ids=lambda r: f"{r.method}-{r.update}-{r.sparsity}")
def test_repeats_bit_for_bit(llama, recipe):
    first, second = (pruned(llama, recipe)[1] for _ in range(2))
    assert first == second


def test_bfloat16_is_pruned_as_it_is_stored(make_checkpoint, tmp_path):
    folder = make_checkpoint(tmp_path / "model", dtype=torch.bfloat16)
    for recipe in (Recipe("besa", 0.5), Recipe("besa", 0.5, "obs")):
        blocks, record, _ = pruned(folder, recipe)
        assert all(t.dtype == torch.bfloat16 for block in blocks for t in block.values())
        total = sum(t.numel() for t in blocks[0].values())
        assert all(sum(entry["zeros"].values()) == total // 2 for entry in record)
    # Computed in float32, what is written is still bfloat16.
    blocks, record, _ = pruned(folder, Recipe("besa", 0.5), torch.float32)
    assert blocks[0]["mlp.up_proj.weight"].dtype == torch.bfloat16


def test_the_whole_job(llama, text_file, quick, tmp_path, capsys):
    dest = tmp_path / "sparse"
    code = compress(llama, dest, *quick, "--sparsity", 0.6, "--evaluation", text_file, "--json")
    found = json.loads(capsys.readouterr().out)
    source, written = Checkpoint(llama), Checkpoint(dest)
    assert code == 0
    assert found["method"] == "besa" and found["sparsity_asked"] == 0.6
    weights = sum(t.numel() for n, t in source.read_block(0).items() if t.ndim == 2)
    assert found["zeros"] == 3 * int(0.6 * weights)
    assert found["sparsity_reached"] == found["zeros"] / (3 * weights)
    assert found["perplexity_before"] > 1 and found["perplexity_after"] > 1
    assert f"{found['zeros']:,} zeros, logits within" in found["verified"]
    assert "Zeros alone make nothing smaller or faster" in found["warnings"][0]
    assert {n: t.shape for n, t in written.tensors.items()} == {
        n: t.shape for n, t in source.tensors.items()
    }
    assert written.config["model_type"] == source.config["model_type"]
    record = json.loads((dest / "compression.json").read_text())["sparsity"]
    assert sum(sum(b["zeros"].values()) for b in record["blocks"]) == found["zeros"]
    assert record["recipe"]["besa"]["sharing"] == "row" and record["calibration"]["sha256"]
    assert "Zeros alone make nothing smaller" in (dest / "README.md").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["sparse"]


@pytest.mark.parametrize(
    ("given", "title"),
    [(["--method", "sparsegpt"], "(sparsegpt)"), (["--update", "obs"], "(besa + obs)")],
)
def test_the_table_shows_every_projection(llama, quick, tmp_path, capsys, given, title):
    code = compress(llama, tmp_path / "out", *quick, "--sparsity", 0.5, "--no-verify", *given)
    shown = capsys.readouterr().out
    assert code == 0
    assert "0.5000 (asked 0.5)" in shown and title in " ".join(shown.split())
    assert all(f"{name}_proj" in shown for name in ("q", "k", "v", "o", "gate", "up", "down"))
    assert "Zeros alone make nothing smaller" in shown


@pytest.mark.parametrize("method", ["wanda", "besa"])
@pytest.mark.parametrize("dead", [0, 40])
def test_zeros_of_the_source_beyond_those_asked_for_are_told(
    make_checkpoint, quick, tmp_path, capsys, method, dead
):
    """The rows of 40 dead channels of 48 have more zeros than were to go."""
    folder = make_checkpoint(tmp_path / "model")

    def kill(tensors):
        for name in ("gate_proj", "up_proj"):
            tensors[f"model.layers.1.mlp.{name}.weight"][:dead] = 0
        tensors["model.layers.1.mlp.down_proj.weight"][:, :dead] = 0

    edit_tensors(folder, kill)
    given = [*quick, "--sparsity", 0.2, "--method", method, "--no-verify", "--json"]
    assert compress(folder, tmp_path / "out", *given) == 0
    found = json.loads(capsys.readouterr().out)
    record = json.loads((tmp_path / "out" / "compression.json").read_text())["sparsity"]
    assert [block["source_zeros"] for block in record["blocks"]] == [0, 3 * 32 * dead, 0]
    told = [w for w in found["warnings"] if "zero in the source already" in w]
    assert len(told) == (found["sparsity_reached"] > 0.2001) == (dead == 40)
    if told:
        assert told[0].startswith("3,840 of these weights were zero")
        assert f"{found['sparsity_reached']:.4f} of the weights are zero and not 0.2." in told[0]


@pytest.fixture
def written(llama, quick, tmp_path):
    arguments = [*quick, "--sparsity", 0.5, "--method", "wanda", "--no-verify"]
    assert compress(llama, tmp_path / "out", *arguments) == 0
    return tmp_path / "out"


def test_verification_counts_zeros_and_compares_with_the_source(written, llama):
    report = verify_here(written, llama)
    assert report["loads"] and report["zeros"] > 10_000

    def one_more(tensors):
        weight = tensors["model.layers.1.mlp.up_proj.weight"]
        weight[4][weight[4] != 0] = 0

    edit_tensors(written, one_more)
    with pytest.raises(VerificationError, match=r"layers\.1\.mlp\.up_proj\.weight .* zeros, and"):
        verify_here(written)


def test_verification_notices_another_weight(written):
    edit_tensors(written, lambda t: t["model.layers.2.mlp.up_proj.weight"].mul_(1.5))
    with pytest.raises(VerificationError, match=r"The weights of block 2 in .* are not those"):
        verify_here(written)


def test_verification_notices_another_norm(written, llama):
    edit_tensors(written, lambda t: t["model.layers.0.input_layernorm.weight"].mul_(1.5))
    assert verify_here(written)["loads"]
    with pytest.raises(VerificationError, match=r"layers\.0\.input_layernorm\.weight .* differs"):
        verify_here(written, llama)


def test_parity_says_what_it_reached(llama, quick, tmp_path, capsys):
    arguments = [*quick, "--sparsity", 0.5, "--besa-parity", "--no-verify", "--json"]
    assert compress(llama, tmp_path / "out", *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sparsity_reached"] != 0.5
    assert abs(found["sparsity_reached"] - 0.5) < 0.05


def test_every_method_is_reachable():
    assert set(METHODS) == set(stream_module.METHODS)
