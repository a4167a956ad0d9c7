"""Gradient x weight statistics from the streamed backward, and their fusion."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.gradients import backward
from compressor.model.modules import make_linear
from compressor.model.stream import BlockStream
from compressor.model.units import BlockGeometry
from compressor.scoring.methods import METHODS
from compressor.scoring.methods.gradient_statistics import KINDS, GradientStatistics, names_of
from compressor.scoring.methods.grains import Grains
from compressor.scoring.methods.hywia import HybridGrains, attend, fitted_share, fuse, tokens
from compressor.scoring.methods.kfac import Kfac, MaskFisher
from compressor.scoring.score import score
from compressor.scoring.scores import Scores
from compressor.text.tokens import TokenSet


def token_set(lengths=(20, 7, 13)) -> TokenSet:
    generator = torch.Generator().manual_seed(0)
    return TokenSet([torch.randint(3, 120, (n,), generator=generator) for n in lengths])


def observed(folder, sources, dtype=torch.float64):
    """The checkpoint, and the evidence of each block."""
    checkpoint = Checkpoint(folder)
    stream = BlockStream(checkpoint, dtype=dtype)
    found = {}

    def visit(index, layer, steps):
        with GradientStatistics(
            layer, BlockGeometry.of(checkpoint, index), index, sources
        ) as statistics:
            for i in steps():
                statistics.end_sequence(len(token_set().sequences[i]) - 1)
            found[index] = statistics.evidence()
        assert not any(p.requires_grad for p in layer.parameters())

    backward(stream, [s[None] for s in token_set().sequences], visit)
    return checkpoint, [found[b] for b in range(checkpoint.blocks)]


def whole_model(folder):
    """The checkpoint's model in float64, and every sequence's gradients by parameter name."""
    model = make_linear(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64))
    gradients = []
    for ids in token_set().sequences:
        model.zero_grad()
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, ids[1:]).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    return model, gradients


def products(model, checkpoint, block: int, gradient, part, units: int):
    """Of every projection in a module [units, channels, weights]: weight x gradient, a bias being one
    more column.
    """
    parts = []
    for leaf in ("weight", "bias"):
        full = checkpoint.block_name(block, f"{part.module}.{leaf}")
        if full in gradient and (leaf == "weight" or part.axis == 0):
            product = (model.get_parameter(full) * gradient[full]).detach()
            parts.append(
                product[:, None] if product.ndim == 1 else product if part.axis == 0 else product.T
            )
    pieces = part.pieces(torch.cat(parts, 1).T, units, checkpoint.channel_sizes)
    return {n: p.permute(1, 2, 0) for n, p in zip(names_of(part), pieces, strict=True)}


def modules_of(checkpoint, block: int):
    """(weight, units, group) of every module of a block that units own."""
    return [
        (part, checkpoint.units[group], group)
        for group, parts in checkpoint.families[block].groups().items()
        for part in parts
        if part.tensor.endswith("weight")
    ]


def test_equal_those_of_an_ordinary_backward(any_kinds):
    checkpoint, found = observed(any_kinds, {"sequences"})
    model, gradients = whole_model(any_kinds)
    for b, evidence in enumerate(found):
        for part, units, _ in modules_of(checkpoint, b):
            for n, gradient in enumerate(gradients):
                for name, product in products(model, checkpoint, b, gradient, part, units).items():
                    size = product.abs().sum((1, 2))
                    expected = (
                        product.sum((1, 2)).abs(),
                        product.sum(2).abs().sum(1),
                        size,
                        product.square().sum((1, 2)),
                    )
                    for kind, value in enumerate(expected):
                        error = (evidence["sequences"][name][n, kind] - value).abs()
                        assert (error <= 1e-9 * size + 1e-9 * value).all(), (name, KINDS[kind])


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "prod", "last"])
@pytest.mark.parametrize("method", ["taylor", "taylor-vector", "taylor-mix"])
def test_presets_are_the_published_formulas(any_kinds, method, reduce):
    # LLM-Pruner: with the calibration set's gradient G and F = mean_n g_n^2,
    # |sum W G| a channel, |W G| or |W G - W^2 F / 2| a weight, added within a unit.
    checkpoint = Checkpoint(any_kinds)
    stream = BlockStream(checkpoint, dtype=torch.float64)
    grains = METHODS[method].choose_grains(reduce=reduce)
    chosen = replace(METHODS[method], grains=grains)
    found = score(checkpoint, chosen, None, token_set(), stream)
    model, gradients = whole_model(any_kinds)
    mean = {n: sum(g[n] for g in gradients) / len(gradients) for n in gradients[0]}
    fisher = {n: sum(g[n].square() for g in gradients) / len(gradients) for n in mean}
    effective = {n: g - model.get_parameter(n) * fisher[n] / 2 for n, g in mean.items()}
    used = effective if method == "taylor-mix" else mean
    expected = {"attention": [], "ffn": []}
    for b in range(checkpoint.blocks):
        of = {"attention": [], "ffn": []}
        for part, units, group in modules_of(checkpoint, b):
            for product in products(model, checkpoint, b, used, part, units).values():
                product = product.detach()
                inner = product.sum(2).abs() if method == "taylor-vector" else product.abs().sum(2)
                of[group].append(inner.sum(1))
        for group, parts in of.items():
            if not parts:  # of another kind there
                expected[group].append(torch.zeros(0, dtype=torch.float64))
                continue
            stack = torch.stack(parts)
            expected[group].append(
                {
                    "sum": stack.sum(0),
                    "mean": stack.mean(0),
                    "max": stack.amax(0),
                    "prod": stack.prod(0) ** (1 / len(stack)),
                    "last": stack[-1],
                }[reduce]
            )
    for group, blocks in expected.items():
        scale = torch.cat(blocks).mean()
        for b, values in enumerate(blocks):
            torch.testing.assert_close(
                found.blocks[b][group].double(), values / scale, rtol=1e-5, atol=1e-9
            )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mlp.up_proj", "mlp.down_proj"),
        ("self_attn.v_proj", "self_attn.o_proj"),
        ("self_attn.q_proj", "self_attn.k_proj"),
    ],
)
def test_coupled_tensors_have_one_gate_derivative(llama, one, other):
    # Scaling a unit's up rows or its down columns is the same change of the loss: a query head that
    # was counted to the wrong KV group would break it.
    for evidence in observed(llama, {"sequences"})[1]:
        rows = evidence["sequences"]
        a, b = (rows[name][:, KINDS.index("signed")] for name in (one, other))
        size = rows[one][:, KINDS.index("absolute")]
        assert ((a - b).abs() <= 1e-9 * size).all()
        assert (a > 0).any()


def test_query_heads_count_for_their_own_group(llama):
    # 8 query heads share 4 KV groups: heads 0 and 1 are group 0's. Head h's rows are made to be
    # worth 10^h, so any other fold is another number.
    checkpoint = Checkpoint(llama)
    layer = BlockStream(checkpoint, dtype=torch.float64).layers[0].to_empty(device="cpu")
    weight = layer.self_attn.q_proj.weight
    weight.data.fill_(1.0)
    worth = 10.0 ** torch.arange(8, dtype=torch.float64).repeat_interleave(4)
    with GradientStatistics(layer, BlockGeometry.of(checkpoint), 0, {"sequences", "mean"}) as found:
        (weight * worth[:, None]).sum().backward()
        found.end_sequence(1)
    elements = 4 * 32  # of a head: head_dim rows of the hidden size
    expected = torch.tensor([1e0 + 1e1, 1e2 + 1e3, 1e4 + 1e5, 1e6 + 1e7]).double() * elements
    for source in ("sequences", "mean"):
        kinds = found.evidence()[source]["self_attn.q_proj"][0]
        for kind in ("signed", "vector", "absolute"):
            torch.testing.assert_close(kinds[KINDS.index(kind)], expected)


def test_tokens_are_root_mean_squares(llama):
    checkpoint, found = observed(llama, {"sequences", "mix"})
    geometry = BlockGeometry.of(checkpoint)
    rows = found[0]["sequences"]
    coarse, fine = tokens(found[0], geometry)["ffn"]
    signed = rows["mlp.down_proj"][:, KINDS.index("signed")]
    torch.testing.assert_close(coarse, signed.square().mean(0).sqrt())
    names = ("gate", "up", "down")
    total = sum(rows[f"mlp.{n}_proj"][:, KINDS.index("absolute")] for n in names)
    torch.testing.assert_close(fine, total.square().mean(0).sqrt())
    assert (coarse <= fine).all()
    second = tokens(found[0], geometry, Grains("vector", "second"))["ffn"][1]
    squares = sum(rows[f"mlp.{n}_proj"][:, KINDS.index("square")] for n in names)
    torch.testing.assert_close(second, squares.mean(0).sqrt())
    mixed = tokens(found[0], geometry, Grains("vector", "mix"))["attention"]
    assert mixed.shape == (2, checkpoint.kv_heads) and (mixed > 0).all()


def random_blocks(units=6, blocks=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = torch.rand(blocks, 3, units, generator=generator, dtype=torch.float64)
    return [{"ffn": block} for block in make + 0.1]


@pytest.mark.parametrize("mode", ["attention", "fixed:0.3"])
def test_fusion_knows_neither_units_nor_the_scale_of_either_part(mode):
    blocks = random_blocks()
    fused = fuse(blocks, mode)
    scores, alphas = fused.scores, fused.rates["coarse"]
    scaled = [{"ffn": b["ffn"] * torch.tensor([[7.0], [0.01], [3.0]])} for b in blocks]
    order = torch.randperm(6)
    permuted = [{"ffn": b["ffn"][:, order]} for b in blocks]
    for b in range(3):
        torch.testing.assert_close(fuse(scaled, mode).scores[b]["ffn"], scores[b]["ffn"])
        torch.testing.assert_close(fuse(permuted, mode).scores[b]["ffn"], scores[b]["ffn"][order])
        assert ((alphas[b]["ffn"] >= 0) & (alphas[b]["ffn"] <= 1)).all()


@pytest.mark.parametrize(
    ("mode", "row"), [("fixed:1", 0), ("coarse", 0), ("fixed:0", 1), ("fine", 1)]
)
def test_the_ends_are_coarse_and_fine_alone(mode, row):
    blocks = random_blocks()
    mean = torch.cat([b["ffn"][row] for b in blocks]).mean()
    for block, found in zip(blocks, fuse(blocks, mode).scores, strict=True):
        torch.testing.assert_close(found["ffn"], block["ffn"][row] / mean)


def test_attention_goes_to_the_token_that_agrees_with_the_query():
    coarse = torch.tensor([1.0, 1.0, 1.0, 2.0, 0.0]).double()
    fine = torch.tensor([4.0, 4.0, 4.0, 2.0, 0.0]).double()
    query = torch.tensor([1.0, 4.0, 2.0, 9.0, 0.0]).double()  # like coarse, like fine, halfway
    alpha = attend(torch.stack((coarse, fine)), query)
    torch.testing.assert_close(alpha.sum(0), torch.ones(5).double())
    torch.testing.assert_close(alpha[0], torch.tensor([1.0, 0.0, 0.5, 0.5, 0.5]).double())


def test_attention_is_added_to_the_query():
    blocks = [{"ffn": torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0], [1.0, 1.0, 4.0]]).double()}]
    coarse, fine, query = (row / row.mean() for row in blocks[0]["ffn"])
    fused = fuse(blocks, "attention")
    alpha = fused.rates["coarse"][0]["ffn"]
    expected = query + alpha * coarse + (1 - alpha) * fine
    torch.testing.assert_close(fused.scores[0]["ffn"], expected)


def test_the_query_is_of_second_order(llama):
    # `reduced` has the tokens first, as without a query, and then the root of what `kfac` scores of
    # channels and `mask-fisher` of KV groups.
    checkpoint = Checkpoint(llama)
    stream = BlockStream(checkpoint, dtype=torch.float64)
    geometry, sequences = BlockGeometry.of(checkpoint), token_set().sequences
    found = {"hybrid": {}, "tokens": {}, "ffn": {}, "attention": {}}

    def visit(index, layer, steps):
        observers = {
            "hybrid": HybridGrains(layer, geometry, index, Grains()),
            "ffn": Kfac(layer, geometry, index),
            "attention": MaskFisher(layer, geometry, index),
        }
        with observers["hybrid"], observers["ffn"], observers["attention"]:
            for i in steps():
                for observer in observers.values():
                    observer.end_sequence(len(sequences[i]) - 1)
            for name, observer in observers.items():
                found[name][index] = observer.reduced()
        found["tokens"][index] = tokens(observers["hybrid"].observers[0].evidence(), geometry)

    backward(stream, [s[None] for s in sequences], visit)
    for block in range(checkpoint.blocks):
        for group in geometry.units:
            rows = found["hybrid"][block][group]
            assert torch.equal(rows[:2], found["tokens"][block][group])
            torch.testing.assert_close(rows[2].square(), found[group][block][group])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_fitted_share_is_found(share):
    generator = torch.Generator().manual_seed(0)
    parts = torch.rand(2, 40, generator=generator, dtype=torch.float64)
    changes = 3e-3 * (share * parts[0] + (1 - share) * parts[1])
    assert fitted_share(parts, changes) == pytest.approx(share, abs=1e-9)


def test_no_share_is_negative():
    generator = torch.Generator().manual_seed(0)
    parts = torch.rand(2, 40, generator=generator, dtype=torch.float64)
    assert fitted_share(parts, 2 * parts[0] - 0.5 * parts[1]) == 1.0
    assert fitted_share(parts, 2 * parts[1] - 0.5 * parts[0]) == 0.0
    assert fitted_share(parts, -parts.sum(0)) == 0.5


def test_calibrated_fits_to_measured_changes(llama):
    checkpoint = Checkpoint(llama)
    found = score(checkpoint, "hywia", "calibrated", token_set(), BlockStream(checkpoint))
    assert len(found.about["notes"]) == 2
    for group, note in zip(("attention", "ffn"), found.about["notes"], strict=True):
        alphas = {a for block in found.rates["coarse"] for a in block[group].tolist()}
        assert len(alphas) == 1 and f"{alphas.pop():.2f} of the score is coarse" in note
        assert "Spearman" in note and "fused" in note


def test_scores_and_alpha_are_kept(llama, tmp_path):
    checkpoint = Checkpoint(llama)
    stream = BlockStream(checkpoint)
    found = score(checkpoint, "hywia", None, token_set(), stream)
    assert found.about["mode"] == "attention"
    found.save(tmp_path / "s.safetensors")
    loaded = Scores.load(tmp_path / "s.safetensors")
    assert set(found.parts) == set(loaded.parts) == {"coarse", "fine"}
    assert set(found.rates) == set(loaded.rates) == {"coarse"}
    for kept, made in (
        (loaded.blocks, found.blocks),
        *((loaded.parts[p], found.parts[p]) for p in found.parts),
        (loaded.rates["coarse"], found.rates["coarse"]),
    ):
        assert len(kept) == checkpoint.blocks
        for a, b in zip(kept, made, strict=True):
            assert all(torch.equal(a[g], b[g]) for g in ("attention", "ffn"))
    again = score(checkpoint, "hywia", None, token_set(), stream)
    assert all(
        torch.equal(a["ffn"], b["ffn"]) for a, b in zip(found.blocks, again.blocks, strict=True)
    )


@pytest.mark.parametrize(
    "mode", ["fixed:", "fixed:a", "fixed:2", "fixed:x", "other", "attention:0.5"]
)
def test_unknown_modes(mode):
    with pytest.raises(InputError, match="has no mode"):
        METHODS["hywia"].check_mode(mode)


def test_a_gradient_that_is_not_finite_is_named(llama):
    checkpoint = Checkpoint(llama)
    layer = BlockStream(checkpoint).layers[0].to_empty(device="cpu")
    weight = layer.mlp.up_proj.weight
    weight.data.fill_(1.0)
    with GradientStatistics(layer, BlockGeometry.of(checkpoint), 4, {"sequences"}) as statistics:
        weight.mul(float("inf")).sum().backward()
        statistics.end_sequence(2)
        with pytest.raises(InputError, match=r"mlp.up_proj.weight in block 4 has 1536 infinite"):
            statistics.evidence()
