"""A source without some of its blocks, against the whole model whose blocks pass the stream on."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.fewer_blocks import FewerBlocks, fewer, without
from compressor.model.loaded_model import LoadedModel
from compressor.model.modules import replaced_forward
from compressor.model.stream import BlockStream
from compressor.planning.plan import Plan
from compressor.writing.cuts import write

IDS = torch.arange(3, 43).view(2, 20)


def passing_on(checkpoint: Checkpoint, dropped: list[int]) -> torch.Tensor:
    """Logits of the whole model, these blocks giving what they are given."""
    stream = BlockStream(checkpoint)
    layers = [stream.layers[block] for block in dropped]
    with replaced_forward(layers, lambda _, hidden, *args, **more: stream.as_returned(hidden)):
        return next(stream.logits([IDS]))


def test_it_computes_what_the_other_blocks_do(any_kinds, tmp_path):
    checkpoint = Checkpoint(any_kinds)
    part = FewerBlocks(checkpoint, [1])
    expected = passing_on(checkpoint, [1])
    assert torch.equal(next(BlockStream(part).logits([IDS])), expected)
    write(part, Plan.whole(part), tmp_path / "out")  # uniform, Bloom too
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    kinds, left = (
        getattr(AutoConfig.from_pretrained(folder), "layer_types", None)
        for folder in (any_kinds, tmp_path / "out")
    )
    assert left == (kinds and [kinds[0], *kinds[2:]])


def test_patterns_become_lists_where_they_would_be_others(tmp_path, make_checkpoint):
    """Also of an old file, which tells the pattern alone."""
    sizes = {"sliding_window": 5, "num_hidden_layers": 4, "sliding_window_pattern": 2}
    folder = make_checkpoint(tmp_path / "model", "gemma3_text", **sizes)
    told = json.loads((folder / "config.json").read_text())
    kinds = told.pop("layer_types")
    (folder / "config.json").write_text(json.dumps(told))
    assert kinds == ["sliding_attention", "full_attention"] * 2
    source = Checkpoint(folder)
    assert FewerBlocks(source, [1]).written_config["layer_types"] == [kinds[i] for i in (0, 2, 3)]
    assert "layer_types" not in FewerBlocks(source, [2, 3]).written_config


def test_settings_that_count_blocks(tmp_path, make_checkpoint):
    folder = make_checkpoint(tmp_path / "model", "qwen2", max_window_layers=2, head_dim=4)
    source = Checkpoint(folder)
    assert fewer(source, [0, 2])["max_window_layers"] == 1
    assert fewer(source, [0, 1])["max_window_layers"] == 2
    source.written_config["max_window_layers"] = 28
    assert fewer(source, [0, 2])["max_window_layers"] == 27


def test_widths_stay_with_their_blocks(unequal):
    source = Checkpoint(unequal)
    part = FewerBlocks(source, [1])
    assert part.block_units == [source.block_units[0], source.block_units[2]]
    assert next(BlockStream(part).logits([IDS])).isfinite().all()


def test_of_a_model_in_memory(llama):
    model = AutoModelForCausalLM.from_pretrained(llama)
    part, same = FewerBlocks(LoadedModel(model), [2]), FewerBlocks(Checkpoint(llama), [2])
    assert torch.equal(*(next(BlockStream(source).logits([IDS])) for source in (part, same)))


def test_folded_tensors_are_read_in_the_place_of_the_sources(llama):
    source, name, last = (
        Checkpoint(llama),
        "model.layers.1.mlp.down_proj.weight",
        "model.norm.weight",
    )
    other = torch.full((32, 48), 0.5)
    part = FewerBlocks(source, [1], {name: other})
    read = part.read([name, last])
    assert torch.equal(read[name], other) and part.file_of(name) is None
    assert torch.equal(read[last], source.read([last])[last])
    up = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(*(s.read([n])[n] for s, n in ((part, up.format(1)), (source, up.format(2)))))


def test_nothing_dropped_is_the_source_itself(llama):
    source = Checkpoint(llama)
    assert without(source, []) is source and source.whole is source and source.numbers == [0, 1, 2]


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ([0], "block 0 cannot be dropped"),
        ([3], "block 3 cannot be dropped: .* has 3 blocks"),
        ([1, 1], "not different block numbers"),
        (["1"], "not different block numbers"),
    ],
)
def test_what_cannot_be_dropped(llama, dropped, message):
    with pytest.raises(InputError, match=message):
        FewerBlocks(Checkpoint(llama), dropped)


def test_blocks_that_compute_by_their_numbers_stay(tmp_path, make_checkpoint):
    sizes = {"intermediate_size": 128, "scale_attn_by_inverse_layer_idx": True}
    folder = make_checkpoint(tmp_path / "model", "gpt2", **sizes)
    with pytest.raises(InputError, match="compute by their numbers"):
        FewerBlocks(Checkpoint(folder), [1])
