"""Scores of whole experts against the definition, token by token in float64."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.experts import in_channels, inner_of
from compressor.model.modules import assign, loaded
from compressor.model.stream import BlockStream
from compressor.scoring.methods import METHODS
from compressor.scoring.score import score
from compressor.text.tokens import TokenSet

# Of several lengths, so that some are padded.
TOKENS = TokenSet([torch.arange(3, 30), torch.arange(40, 80), torch.arange(90, 95)])


@pytest.fixture
def by_hand(any_mixture):
    """Of every block, expert and token that is sent to it: g(x) |f(x)|, by the model's own router."""
    model = AutoModelForCausalLM.from_pretrained(any_mixture).eval().double()
    seen = [[[] for _ in range(6)] for _ in model.model.layers]

    def hook(block):
        def take(experts, args) -> None:
            for x, chosen, weights in zip(*args, strict=True):
                for expert, weight in zip(chosen.tolist(), weights.tolist(), strict=True):
                    gate, up = (experts.gate_up_proj[expert] @ x).chunk(2)
                    out = experts.down_proj[expert] @ (experts.act_fn(gate) * up)
                    seen[block][expert].append(weight * out.norm().item())

        return take

    for block, layer in enumerate(model.model.layers):
        if hasattr(layer.mlp, "experts"):
            layer.mlp.experts.register_forward_pre_hook(hook(block))
    model.set_experts_implementation("eager")
    with torch.no_grad():
        for ids in TOKENS.sequences:
            model(ids[None])
    return seen


def test_reap_and_frequency_are_those_by_definition(any_mixture, by_hand):
    checkpoint = Checkpoint(any_mixture)
    stream = BlockStream(checkpoint)
    found = {m: score(checkpoint, m, None, TOKENS, stream).blocks for m in ("reap", "frequency")}
    totals = score(checkpoint, "reap", "total", TOKENS, stream).blocks
    tokens = sum(map(len, TOKENS.sequences))
    for block, experts in enumerate(by_hand):
        if not checkpoint.block_units[block]["ffn"]:
            assert not any(experts)
            continue
        means = torch.tensor([sum(sizes) / len(sizes) if sizes else 0.0 for sizes in experts])
        shares = torch.tensor([len(sizes) / tokens for sizes in experts])
        torch.testing.assert_close(found["reap"][block]["ffn"], means, rtol=1e-4, atol=0)
        torch.testing.assert_close(found["frequency"][block]["ffn"], shares)
        assert shares.sum() == pytest.approx(2)
        torch.testing.assert_close(totals[block]["ffn"], means * shares, rtol=1e-4, atol=0)


def test_an_expert_that_no_token_reaches_has_no_score(mixture):
    checkpoint = Checkpoint(mixture)
    few = TokenSet([torch.tensor([5, 6])])
    scores = score(checkpoint, "reap", None, few, BlockStream(checkpoint)).blocks
    assert all((block["ffn"] == 0).any() and (block["ffn"] > 0).any() for block in scores)


def test_groups_are_scored_by_what_they_add(mixture):
    """|X_u W_u^T| over the root of the tokens: the stream is what the heads together add to it."""
    checkpoint = Checkpoint(mixture)
    found = score(checkpoint, "reap", None, TOKENS, BlockStream(checkpoint)).blocks
    model = AutoModelForCausalLM.from_pretrained(mixture).eval()
    energy = torch.zeros(3, 4, dtype=torch.float64)

    def hook(block):
        def take(module, args) -> None:
            x = args[0].flatten(0, -2).double().unflatten(1, (4, -1))
            weight = module.weight.double().unflatten(1, (4, -1))
            energy[block] += torch.einsum("tuc,huc->tuh", x, weight).square().sum((0, 2))

        return take

    for block, layer in enumerate(model.model.layers):
        layer.self_attn.o_proj.register_forward_pre_hook(hook(block))
    with torch.no_grad():
        for ids in TOKENS.sequences:
            model(ids[None])
    expected = (energy / sum(map(len, TOKENS.sequences))).sqrt()
    for block, scores in enumerate(found):
        torch.testing.assert_close(scores["attention"], expected[block].float(), rtol=1e-4, atol=0)


def test_the_size_of_an_expert_is_that_of_its_tensors(mixture):
    checkpoint = Checkpoint(mixture)
    scores = score(checkpoint, "magnitude").blocks
    for block, found in enumerate(scores):
        tensors = checkpoint.read_block(block)
        names = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight")
        expected = sum(tensors[name].double().flatten(1).square().sum(1) for name in names)
        torch.testing.assert_close(found["ffn"].double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("method", "family", "message"),
    [
        ("llm-bip", "qwen3_moe", "llm-bip scores channels .* use --method reap, taylor,"),
        ("reap", "llama", "reap scores whole experts .* use --method llm-bip, besa,"),
    ],
)
def test_methods_of_other_units_are_refused(random_family, method, family, message):
    with pytest.raises(InputError, match=message):
        METHODS[method].check_units(Checkpoint(random_family(family)).family)


def test_the_loss_without_an_expert_is_that_of_the_model_without_it(mixture):
    """By the ordinary model, of one of whose blocks the expert is gone."""
    checkpoint = Checkpoint(mixture)
    stream = BlockStream(checkpoint)
    found = score(checkpoint, "loss", None, TOKENS, stream).blocks
    model = AutoModelForCausalLM.from_pretrained(mixture).eval()

    def loss() -> float:
        sums = [
            model(ids[None], labels=ids[None]).loss * (len(ids) - 1) for ids in TOKENS.sequences
        ]
        return (sum(sums) / sum(len(ids) - 1 for ids in TOKENS.sequences)).item()

    with torch.no_grad():
        whole, changes = loss(), []
        mlp = model.model.layers[1].mlp
        tensors = {n: p.clone() for n, p in mlp.named_parameters()}
        mlp.experts.num_experts = mlp.gate.num_experts = 5
        for lost in range(6):
            kept = [expert for expert in range(6) if expert != lost]
            assign(mlp, {name: tensor[kept] for name, tensor in tensors.items()})
            changes.append(loss() - whole)
    expected = torch.tensor(changes) - min(0, *changes)
    torch.testing.assert_close(found[1]["ffn"], expected, rtol=1e-3, atol=2e-6)


def test_taylor_is_the_gradient_times_the_weights_of_an_expert(mixture):
    checkpoint = Checkpoint(mixture)
    one = TokenSet(TOKENS.sequences[:1])
    found = score(checkpoint, "taylor", None, one, BlockStream(checkpoint)).blocks
    model = AutoModelForCausalLM.from_pretrained(mixture)
    model(one.sequences[0][None], labels=one.sequences[0][None]).loss.backward()
    sums = []
    for layer in model.model.layers:
        parts = (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj, layer.mlp.gate.weight)
        sums.append(sum((p * p.grad).detach().abs().flatten(1).sum(1) for p in parts))
    expected, scores = torch.stack(sums), torch.stack([block["ffn"] for block in found])
    torch.testing.assert_close(
        scores / scores.mean(), expected / expected.mean(), rtol=1e-3, atol=0
    )


def test_channels_of_experts_by_what_they_give(mixture):
    """Of one expert by hand: the tokens that reach it, times the router's weights."""
    source = in_channels(Checkpoint(mixture))
    stream = BlockStream(source, dtype=torch.float32)
    found = score(source, "llm-bip", None, TOKENS, stream).blocks[0]["ffn"].view(6, -1)
    plain = score(source, "wanda-sp", None, TOKENS, stream).blocks[0]["ffn"].view(6, -1)
    read: list = []
    states, calls = stream.record([ids[None] for ids in TOKENS.sequences])
    with loaded(stream.layers[0], stream.cast(source.read_block(0))) as layer:
        stack = layer.mlp.experts
        with torch.no_grad(), stack.register_forward_pre_hook(lambda _, args: read.append(args)):
            for i in range(len(TOKENS.sequences)):
                args, call = calls[i][0]
                layer(states.get(i, stream.device), *args, **call)
        hidden, chosen, weights = (torch.cat(each) for each in zip(*read, strict=True))
        at, place = torch.where(chosen == 3)
        inner = inner_of(stack, 3, hidden[at]).double()
        weighed = inner * weights[at, place, None].double()
        down = stack.down_proj[3].double()
    energy = weighed.square().sum(0) / len(hidden) * down.square().sum(0)
    torch.testing.assert_close(found[3].double(), energy.sqrt(), rtol=1e-4, atol=1e-6)
    norm = (inner.square().sum(0) / len(TOKENS.sequences)).sqrt()
    torch.testing.assert_close(plain[3].double(), down.abs().mean(0) * norm, rtol=1e-4, atol=1e-6)
