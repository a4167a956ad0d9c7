"""`make adapters`: Torch-Pruning, with our importance, prunes a Llama that plain transformers loads."""

import pytest
import torch
import torch_pruning
from transformers import AutoModelForCausalLM

from compressor.adapters.torch_pruning import FusedTaylorImportance
from compressor.kernels import taylor


@pytest.fixture
def model(llama):
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    model.config.use_cache = False
    return model


IDS = torch.arange(3, 43).view(2, 20)


def pruned(model, importance) -> None:
    """Without a quarter of every FFN; groups of heads that share keys take Torch-Pruning minutes."""
    attention = [linear for block in model.model.layers for linear in block.self_attn.children()]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        IDS,
        importance=importance,
        pruning_ratio=0.25,
        ignored_layers=[*attention, model.lm_head, model.model.embed_tokens],
        output_transform=lambda output: output.logits,
    )
    model(IDS, labels=IDS).loss.backward()
    pruner.step()
    model.config.intermediate_size = model.model.layers[0].mlp.gate_proj.out_features


def test_a_llama_from_end_to_end(model, tmp_path):
    pruned(model, FusedTaylorImportance())
    for block in model.model.layers:
        assert block.mlp.gate_proj.weight.shape == block.mlp.up_proj.weight.shape == (36, 32)
        assert block.mlp.down_proj.weight.shape == (32, 36)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits)
    assert loaded.generate(IDS[:1], max_new_tokens=4, min_new_tokens=4).shape == (1, 24)


@pytest.mark.parametrize("several", [False, True])
def test_as_theirs(model, llama, several):
    """The same channels go as by Torch-Pruning's own importance of the same numbers."""
    theirs = torch_pruning.importance.GroupTaylorImportance(
        multivariable=several, target_types=[torch.nn.Linear]
    )
    other = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    other.config.use_cache = False
    pruned(other, theirs)
    pruned(model, FusedTaylorImportance("signed" if several else "absolute"))
    assert model.config.intermediate_size == 36
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


def test_each_matrix_is_read_once(model, monkeypatch):
    from compressor.adapters import torch_pruning as adapter

    read = []

    def counted(weight, *arguments, **named):
        read.append(id(weight))
        return taylor.taylor(weight, *arguments, **named)

    monkeypatch.setattr(adapter, "taylor", counted)
    graph = torch_pruning.DependencyGraph().build_dependency(
        model, IDS, output_transform=lambda output: output.logits
    )
    model(IDS, labels=IDS).loss.backward()
    mlp, importance = model.model.layers[0].mlp, FusedTaylorImportance()
    for layer in (mlp.gate_proj, mlp.down_proj, mlp.gate_proj):
        outputs = torch_pruning.prune_linear_out_channels
        group = graph.get_pruning_group(layer, outputs, [*range(layer.out_features)])
        assert importance(group).shape == (layer.out_features,)
    assert len(read) == len({*read})


def test_without_a_gradient(model):
    with pytest.raises(ValueError, match="has no gradient; call loss"):
        graph = torch_pruning.DependencyGraph().build_dependency(
            model, IDS, output_transform=lambda output: output.logits
        )
        layer = model.model.layers[0].mlp.gate_proj
        group = graph.get_pruning_group(layer, torch_pruning.prune_linear_out_channels, [0, 1])
        FusedTaylorImportance()(group)


def test_a_statistic_that_is_not_there():
    with pytest.raises(ValueError, match="statistic is 'mean'; it must be one of signed, absolute"):
        FusedTaylorImportance("mean")
