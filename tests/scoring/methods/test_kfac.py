"""Scores from gradients at the output projections, against autograd of the whole model."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.gradients import backward
from compressor.model.modules import make_linear
from compressor.model.stream import BlockStream
from compressor.model.units import BlockGeometry
from compressor.scoring.methods.kfac import Kfac, MaskFisher, Metric, output_error
from compressor.scoring.methods.output_gradients import OutputGradients
from compressor.text.tokens import TokenSet

LENGTHS = (20, 7, 2, 13)


class Recorder(OutputGradients):
    """Keeps what is observed of each sequence: found[group] = [(x, dx, dy), ...]."""

    def __init__(self, *args):
        super().__init__(*args)
        self.found = {group: [] for group in self.geometry.units}

    def add(self, group, x, dx, dy) -> None:
        self.found[group].append((x, dx, dy))

    def scores(self):
        raise AssertionError("these have none")

    def reduced(self):
        return self.found


def token_set(lengths=LENGTHS) -> TokenSet:
    generator = torch.Generator().manual_seed(0)
    return TokenSet([torch.randint(3, 120, (n,), generator=generator) for n in lengths])


def observed(folder, observer, tokens=None, dtype=torch.float64, scale=1):
    """What an observer reduces each block to."""
    checkpoint = Checkpoint(folder)
    batches = [s[None] for s in (tokens or token_set()).sequences]
    blocks = [None] * checkpoint.blocks

    def visit(index, layer, steps):
        with observer(layer, BlockGeometry.of(checkpoint, index), index) as statistics:
            for i in steps():
                statistics.end_sequence(scale * (batches[i].shape[1] - 1))
                assert all(p.grad is None for p in layer.parameters())
            blocks[index] = statistics.reduced()
        assert not any(p.requires_grad for p in layer.parameters())
        assert not any(m._forward_hooks for m in layer.modules())

    backward(BlockStream(checkpoint, dtype=dtype), batches, visit)
    return blocks


def whole_model(folder):
    """By block and group, of each sequence: x, dL/dx and dL/dy [tokens, n], and the output
    projection's weight and gradient [hidden, channels], of the sequence's mean loss.
    """
    checkpoint = Checkpoint(folder)
    model = make_linear(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)).eval()
    modules = {
        (b, g): model.get_submodule(checkpoint.block_name(b, checkpoint.family.output(g)[:-7]))
        for b, units in enumerate(checkpoint.block_units)
        for g in units
        if units[g]
    }
    found = {key: [] for key in modules}
    held = {}
    for key, module in modules.items():

        def hook(_, args, output, key=key):
            args[0].retain_grad()
            output.retain_grad()
            held[key] = args[0], output

        module.register_forward_hook(hook)
    for ids in token_set().sequences:
        model.zero_grad()
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, ids[1:]).backward()
        for key, (x, y) in held.items():
            weight = modules[key].weight
            rows = [t.detach().flatten(0, -2) for t in (x, x.grad, y.grad)]
            found[key].append((*rows, weight.detach(), weight.grad.clone()))
    return checkpoint, found


def parts(matrix: torch.Tensor, units: int) -> tuple[torch.Tensor, ...]:
    """The columns of each unit."""
    return matrix.chunk(units, dim=1)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * float(expected.max()))


def test_scores_equal_their_formulas_over_the_whole_models_gradients(any_kinds):
    checkpoint, found = whole_model(any_kinds)
    fisher, kfac = observed(any_kinds, MaskFisher), observed(any_kinds, Kfac)
    tokens = sum(n - 1 for n in LENGTHS)
    for (block, group), sequences in found.items():
        units = checkpoint.units[group]
        squares = torch.zeros(units, dtype=torch.float64)
        grams = [0] * units
        metric = 0
        for x, dx, dy, *_ in sequences:
            predicted = len(x) - 1
            assert dy[-1].abs().max() == 0  # the last token moves no loss
            for u, (xu, dxu) in enumerate(zip(parts(x, units), parts(dx, units), strict=True)):
                for t in range(predicted):
                    squares[u] += (predicted * xu[t].dot(dxu[t])) ** 2
                grams[u] = grams[u] + xu[:-1].T @ xu[:-1]
            metric = metric + sum(torch.outer(g, g) for g in predicted * dy)
        expected = [
            torch.trace(w.T @ metric @ w @ gram) / tokens**2
            for w, gram in zip(parts(sequences[0][3], units), grams, strict=True)
        ]
        assert_close(fisher[block][group], squares / tokens)
        assert_close(kfac[block][group], torch.stack(expected))
        assert kfac[block][group].dtype == torch.float64


def test_gates_summed_over_tokens_are_the_signed_taylor_sums(any_kinds):
    _, found = whole_model(any_kinds)
    for block, groups in enumerate(observed(any_kinds, Recorder)):
        for group, sequences in groups.items():
            rows = zip(sequences, found[block, group], strict=True)
            for (x, dx, _), (*_, weight, gradient) in rows:
                assert_close((x * dx).sum(0) / len(x), (weight * gradient).sum(0))


def test_of_one_token_both_scores_are_the_squared_gate_derivative(any_family):
    # With one token there is nothing to take as independent.
    tokens = token_set((2,))
    for fisher, kfac in zip(
        observed(any_family, MaskFisher, tokens), observed(any_family, Kfac, tokens), strict=True
    ):
        for group in fisher:
            assert_close(kfac[group], fisher[group])
            assert (fisher[group] > 0).any()


@pytest.mark.parametrize("observer", [Kfac, MaskFisher])
def test_scores_are_squares_of_the_gradients(llama, observer):
    one, three = observed(llama, observer), observed(llama, observer, scale=3)
    for a, b in zip(one, three, strict=True):
        for group in a:
            assert_close(b[group], 9 * a[group])


@pytest.mark.parametrize("observer", [Kfac, MaskFisher])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)])
def test_lower_precision_changes_little(llama, observer, dtype, tolerance):
    exact, rounded = observed(llama, observer), observed(llama, observer, dtype=dtype)
    for a, b in zip(exact, rounded, strict=True):
        for group in a:
            assert ((a[group] - b[group]).norm() / a[group].norm()) < tolerance


@pytest.mark.parametrize("observer", [Kfac, MaskFisher])
def test_same_inputs_same_bytes(llama, observer):
    for a, b in zip(observed(llama, observer), observed(llama, observer), strict=True):
        assert all(torch.equal(a[group], b[group]) for group in a)


@pytest.mark.parametrize(("units", "width"), [(7, 1), (6, 4), (2, 12)])
@pytest.mark.parametrize("columns", [5, 1024])
@pytest.mark.parametrize("rows", [1, 4, 9, 20])  # kept as rows below 9, as a matrix from 9 on
def test_output_error_is_the_mean_square_in_the_metric(units, width, columns, rows, monkeypatch):
    monkeypatch.setattr("compressor.scoring.methods.kfac.COLUMNS", columns)
    torch.manual_seed(0)
    weight = torch.randn(9, units * width, dtype=torch.float64)
    x = torch.randn(30, units, width, dtype=torch.float64)
    gradients = torch.randn(rows, 9, dtype=torch.float64)
    removed = torch.einsum("tuc,huc->tuh", x, weight.unflatten(1, (units, width)))
    expected = (removed @ gradients.T).square().sum((0, 2))
    metric = Metric()
    for part in gradients.split(3):
        metric.add(part)
    assert (metric.gram is None) == (rows < 9)
    found = output_error(weight, torch.einsum("tuc,tud->ucd", x, x), metric)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("observer", [Kfac, MaskFisher])
@pytest.mark.parametrize(
    ("where", "name"), [("self_attn.o_proj", "input"), ("mlp.down_proj", "output")]
)
def test_a_gradient_that_is_not_finite_is_named(llama, observer, where, name):
    checkpoint = Checkpoint(llama)
    layer = BlockStream(checkpoint).layers[0].to_empty(device="cpu")
    module = layer.get_submodule(where)
    module.weight.data.fill_(1.0)
    x = torch.ones(1, 3, module.in_features, requires_grad=True)
    message = f"of the {name} of {where} in block 4 is not finite"
    with observer(layer, BlockGeometry.of(checkpoint), 4) as statistics:
        given = x * 1
        output = module(given)
        (output.sum() + (given if name == "input" else output).mul(float("inf")).sum()).backward()
        statistics.end_sequence(2)
        with pytest.raises(InputError, match=message):
            statistics.reduced()
