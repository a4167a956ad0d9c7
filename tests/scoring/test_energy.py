"""The energy of channels behind norms against transformers' own modules."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.scoring.energy import energies, most
from compressor.text.tokens import TokenSet

ROWS = [torch.arange(3, 12), torch.arange(20, 40), torch.arange(50, 70)]


@pytest.mark.parametrize(
    ("kind", "norms"),
    [
        ("llama", ["input_layernorm", "post_attention_layernorm"]),
        ("gemma2", ["input_layernorm", "pre_feedforward_layernorm"]),
        pytest.param("cohere", ["input_layernorm"], marks=pytest.mark.breadth),
        ("olmo2", []),  # its parts read the stream itself
    ],
)
def test_it_is_the_energy_behind_the_norms(random_family, kind, norms):
    folder = random_family(kind)
    found = energies(BlockStream(Checkpoint(folder)), TokenSet(ROWS))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    sums: dict[str, torch.Tensor] = {}

    def look(name: str, module, entering: bool) -> None:
        def add(_, args, out) -> None:
            x = args[0].double() if entering else out.double()
            x = x * x.square().mean(-1, keepdim=True).rsqrt() if entering else x
            sums[name] = sums.get(name, 0) + x.square().sum((0, 1))

        module.register_forward_hook(add)

    for index, layer in enumerate(model.model.layers):
        for name in norms:
            look(f"{index} {name}", layer.get_submodule(name), entering=False)
        if not norms:
            look(f"{index} attention", layer.self_attn.q_proj, entering=True)
            look(f"{index} ffn", layer.mlp, entering=True)
    look("head", model.model.norm, entering=False)
    with torch.no_grad():
        for row in ROWS:
            model(row[None], use_cache=False)
    expected = sum(x / x.sum() for x in sums.values())
    torch.testing.assert_close(found, expected / expected.sum(), rtol=1e-4, atol=1e-8)


def test_the_most_of_it():
    assert most(torch.tensor([0.1, 0.4, 0.2, 0.3, 0.2]), 3) == [1, 2, 3]
