"""The repair of a narrower model against least squares in float64."""

import pytest
import torch
from repairs import texts
from transformers import AutoModelForCausalLM

from compressor.model.checkpoint import Checkpoint
from compressor.model.fewer_channels import FewerChannels
from compressor.model.stream import BlockStream
from compressor.planning.plan import Plan
from compressor.repairing.outer import scaled_norm
from compressor.repairing.streaming import HELD_BACK, Repair
from compressor.text.tokens import TokenSet, held_back

TEXT = TokenSet(texts(40))
KEPT = [*range(3, 27)]


def repaired(folder, kind: str = "ridge"):
    source = Checkpoint(folder)
    part = FewerChannels(source, KEPT)
    stream = BlockStream(source).without(part)
    repair = Repair(stream, Plan.whole(part), TEXT, kind)
    return repair, list(repair.blocks()), part


@pytest.fixture(scope="module")
def llama_repaired(llama):
    return repaired(llama)


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def solved(a, t, present, relative: float):
    """The ridge regression of t on a, drawn toward what is present."""
    gram = a.T @ a
    damped = gram + relative * gram.diagonal().mean() * torch.eye(len(gram), dtype=a.dtype)
    return present + torch.linalg.solve(damped, a.T @ (t - a @ present.T)).T


def fitted_rows(of) -> torch.Tensor:
    """What `of` makes of all sequences that are fitted."""
    held = held_back(len(TEXT.sequences), HELD_BACK)
    rows = [of(row) for i, row in enumerate(TEXT.sequences) if i not in held]
    return torch.cat(rows).double()


def test_readers_are_told_what_the_whole_stream_would_have(llama, llama_repaired):
    """q, k and v of the first block, which both paths enter with the embedding."""
    repair, blocks, _ = llama_repaired
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float64)
    layer, table = model.model.layers[0], model.model.embed_tokens.weight.detach()
    weight = layer.input_layernorm.weight.detach()
    z = fitted_rows(lambda row: normed(table[row], weight))
    x = fitted_rows(lambda row: normed(table[row][:, KEPT], weight[KEPT]))
    told = repair.record[0]["steps"]["attention inputs"]
    present = torch.eye(32, dtype=torch.float64)[:, KEPT]
    read = solved(x, z, present, told["lambda"])
    assert (x @ read.T - z).square().sum() < 0.9 * (x @ present.T - z).square().sum()
    for name in ("q_proj", "k_proj", "v_proj"):
        expected = x @ read.T @ layer.self_attn.get_submodule(name).weight.detach().T
        ours = x @ blocks[0][f"self_attn.{name}.weight"].double().T
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3 * expected.std().item())


def test_every_matrix_is_fitted_and_every_step_lowers_its_error(llama_repaired):
    repair, blocks, part = llama_repaired
    matrices = {n for g in ("attention", "ffn") for n in part.readers(0, g) + part.writers(0, g)}
    assert len(matrices) == 7
    for block, record in zip(blocks, repair.record, strict=True):
        assert set(block) <= matrices and record["tensors"] == sorted(block)
    assert {name for block in blocks for name in block} == matrices
    for record in repair.record:
        assert {*record["steps"]} <= {"attention inputs", "attention", "ffn inputs", "ffn"}
        assert all(step["after"] <= step["before"] for step in record["steps"].values())


def test_the_logits_come_nearer_to_the_dense_ones(llama, llama_repaired):
    _, blocks, part = llama_repaired
    ids = TEXT.sequences[3][None]
    (dense,) = BlockStream(Checkpoint(llama)).logits([ids])
    (cut,) = BlockStream(FewerChannels(Checkpoint(llama), KEPT)).logits([ids])
    changed = {part.block_name(i, n): t for i, block in enumerate(blocks) for n, t in block.items()}
    whole = FewerChannels(Checkpoint(llama), KEPT)
    whole.outer = part.outer | changed  # `read` takes any tensor from it
    (ours,) = BlockStream(whole).logits([ids])
    assert (ours - dense).square().mean() < 0.7 * (cut - dense).square().mean()


def test_norms_behind_projections_take_how_much_less_is_divided_by(random_family):
    """Gemma 2's, whose weights are what they add to one: the mean ratio of root mean squares."""
    repair, blocks, part = repaired(random_family("gemma2"))
    for block, record in zip(blocks, repair.record, strict=True):
        times = record["steps"]["ffn norm"]["times"]
        assert times != 1
        name = "post_feedforward_layernorm.weight"
        stored = part.read_block(repair.record.index(record))[name]
        torch.testing.assert_close(block[name] + 1, (stored + 1) * times)


def test_a_tied_heads_norm_brings_the_logits_nearest(random_family):
    """The factors of every channel, as least squares of all logits of all tokens."""
    source = Checkpoint(random_family("llama"))
    part = FewerChannels(source, KEPT)
    torch.manual_seed(1)
    z = torch.randn(60, 32)
    x = z[:, KEPT] * torch.linspace(0.5, 1.5, len(KEPT)) + 0.01 * torch.randn(60, len(KEPT))
    pairs = [(x[:40], z[:40]), (x[40:], z[40:])]
    found = scaled_norm(iter(pairs), 1, part, torch.device("cpu"))[source.last_norm]
    whole = source.read([source.family.embedding])[source.family.embedding].double()
    whole = whole - whole.mean(0)
    design = torch.einsum("vc,tc->tvc", whole[:, KEPT], x[:40].double()).flatten(0, 1)
    logits = (z[:40].double() @ whole.T).flatten()
    factors = torch.linalg.lstsq(design, logits[:, None]).solution[:, 0]
    expected = factors * part.read([source.last_norm])[source.last_norm]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-3)


def test_a_head_of_its_own_is_refitted(random_family):
    source = Checkpoint(random_family("mistral"))
    _, _, part = repaired(random_family("mistral"))
    assert not source.tied and {*part.outer} == {source.family.head}
    assert part.outer[source.family.head].shape == (source.vocabulary, len(KEPT))


def test_training_moves_matrices_and_experts(mixture):
    repair, blocks, _ = repaired(mixture, "refine")
    assert all("refine" in record["steps"] for record in repair.record)
    assert any("expert" in step for record in repair.record for step in record["steps"])
    assert "mlp.experts.gate_up_proj" in {name for block in blocks for name in block}
