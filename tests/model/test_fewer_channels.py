"""A source with fewer channels in its residual stream, against models cut by hand in float64."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compressor.errors import InputError
from compressor.job.record import hidden_record
from compressor.model.checkpoint import Checkpoint
from compressor.model.fewer_channels import FewerChannels, narrower, step_of
from compressor.model.modules import make_linear
from compressor.model.stream import BlockStream
from compressor.planning.plan import Plan
from compressor.verification.narrow import only_channels

IDS = torch.arange(3, 33).view(2, 15)


def some(source, step: int = 8) -> list[int]:
    """Channels that stay, a few multiples of what the class asks for fewer than there are."""
    size, step = source.hidden_size, step_of(source, step)
    torch.manual_seed(0)
    return sorted(torch.randperm(size)[: size - step].tolist())


def test_it_computes_what_the_source_does_in_these_channels_alone(any_family, rounding):
    """The view by transformers' class of fewer channels; the source by its own, its norms over these
    channels and its embedding in them.
    """
    source = Checkpoint(any_family)
    if source.family.heads_fixed:
        with pytest.raises(InputError, match=r"hidden size / heads channels a head, so that heads"):
            FewerChannels(source, some(source))
        return
    part = FewerChannels(source, some(source))
    assert part.hidden_size == len(part.channels) and part.head_dim == source.head_dim
    assert part.block_units == source.block_units and part.whole is source
    (ours,) = BlockStream(part, dtype=torch.float64).logits([IDS])
    model = AutoModelForCausalLM.from_pretrained(any_family, dtype=torch.float64)
    model = make_linear(model).eval()
    with torch.no_grad():
        before = model(IDS).logits
        with only_channels(model, part, part, hidden_record(part)):
            theirs = model(IDS).logits
        assert torch.equal(model(IDS).logits, before)
    assert (ours - before).abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=4 * rounding * theirs.std().item())


def test_tensors_are_cut_along_the_stream(llama):
    source, kept = Checkpoint(llama), [0, *range(2, 17)]
    part, whole = FewerChannels(source, kept), load_file(llama / "model.safetensors")
    read = part.read(part.tensors)
    assert all(list(read[name].shape) == entry.shape for name, entry in part.tensors.items())
    assert part.parameters == sum(t.numel() for t in read.values())
    assert part.bytes == 4 * part.parameters
    rows, columns = "model.layers.1.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(read[rows], whole[rows][kept])
    assert torch.equal(read[columns], whole[columns][:, kept])
    assert part.file_of(rows) is None
    assert part.config["head_dim"] == source.head_dim and part.written_config["hidden_size"] == 16


def test_heads_that_do_not_divide_it_are_another_type(llama):
    """Eight heads in 20 channels, which Llama's config class refuses and Mistral's does not."""
    part = FewerChannels(Checkpoint(llama), range(20))
    assert part.model_config().model_type == "mistral"
    assert part.family.model_type == "llama"


def test_where_no_other_type_computes_the_same_heads_divide_it(random_family):
    source = Checkpoint(random_family("gemma2"))
    assert step_of(source, 6) == 24 and step_of(Checkpoint(random_family("mistral")), 6) == 6
    with pytest.raises(
        InputError, match=r"class of gemma2 refuses a hidden size of 20: .*multiple"
    ):
        FewerChannels(source, range(20))


def test_norms_of_all_heads_that_are_made_of_the_hidden_size(random_family):
    source = Checkpoint(random_family("olmoe"))
    with pytest.raises(
        InputError, match=r"makes model.layers.0.self_attn.k_norm.weight .12. of a hid"
    ):
        FewerChannels(source, range(24))


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("inside", "llava", "what else is in a llava gives as many channels to the text"),
        ("stock", False, "no class of transformers builds it"),
    ],
)
def test_models_whose_hidden_size_stays(llama, field, value, why):
    source = Checkpoint(llama)
    source.family = replace(source.family, **{field: value})
    with pytest.raises(InputError, match=why):
        FewerChannels(source, range(16))


@pytest.mark.parametrize("channels", [[], [3, 2], [1, 1], [-1, 2], [0, 32], [0, 1.0], range(32)])
def test_what_is_no_choice_of_channels(llama, channels):
    with pytest.raises(InputError, match="ascending numbers below 32, and fewer"):
        FewerChannels(Checkpoint(llama), channels)


def test_a_plan_is_of_the_channels_that_it_was_made_for(llama):
    source = Checkpoint(llama)
    part = narrower(source, range(16))
    assert narrower(source, []) is source
    plan = Plan.whole(part)
    plan.check(part)
    assert plan.channels == [*range(16)]
    with pytest.raises(
        InputError, match=r"keeps 16 channels of the residual stream, and .* with all"
    ):
        plan.check(source)
    with pytest.raises(
        InputError, match=r"keeps all channels of the residual stream, and .* with 16"
    ):
        Plan.whole(source).check(part)
