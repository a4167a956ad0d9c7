"""The streamed backward gives the gradients of an ordinary backward of the whole model."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.gradients import backward
from compressor.model.modules import make_linear
from compressor.model.stream import BlockStream

LENGTHS = (20, 7, 2)


def sequences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 120, (1, n), generator=generator) for n in LENGTHS]


def streamed(stream, batches) -> tuple[list[float], list[dict[str, torch.Tensor]]]:
    """Losses, and every block parameter's gradient by its full name, for each sequence."""
    found = [{} for _ in batches]

    def visit(index, layer, steps):
        for parameter in layer.parameters():
            parameter.requires_grad_(True)
        for i in steps():
            for name, parameter in layer.named_parameters():
                found[i][stream.checkpoint.block_name(index, name)] = parameter.grad
                parameter.grad = None

    return backward(stream, batches, visit), found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("chunk", [256, 5])
def test_equals_the_ordinary_backward(any_kinds, dtype, tolerance, chunk, monkeypatch):
    monkeypatch.setattr("compressor.model.gradients.logits_rows", lambda _: chunk)
    stream = BlockStream(Checkpoint(any_kinds), dtype=dtype)
    losses, found = streamed(stream, sequences())
    model = make_linear(AutoModelForCausalLM.from_pretrained(any_kinds, dtype=dtype))
    for ids, loss, gradients in zip(sequences(), losses, found, strict=True):
        model.zero_grad()
        whole = model(input_ids=ids, use_cache=False).logits[0, :-1]
        expected = torch.nn.functional.cross_entropy(whole, ids[0, 1:])
        expected.backward()
        assert loss == pytest.approx(expected.item(), rel=tolerance)
        blocks = stream.checkpoint.family.layers + "."
        names = {n for n, _ in model.named_parameters() if n.startswith(blocks)}
        assert set(gradients) == names
        largest = max(model.get_parameter(name).grad.norm() for name in names)
        for name in names:  # a bias of keys has none but rounding: softmax does not see it
            gradient = model.get_parameter(name).grad
            difference = (gradients[name] - gradient).norm()
            assert difference <= tolerance * gradient.norm() + tolerance * 1e-2 * largest, name


def test_activations_may_lie_in_files(llama, tmp_path):
    host = streamed(BlockStream(Checkpoint(llama)), sequences())
    disk = streamed(BlockStream(Checkpoint(llama), place=tmp_path), sequences())
    assert host[0] == disk[0]
    for a, b in zip(host[1], disk[1], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_stops(make_checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= float("inf")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match="sequence 0"):
        streamed(BlockStream(Checkpoint(folder)), sequences())
