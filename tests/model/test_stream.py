"""The stream computes the ordinary model's numbers, whatever it keeps where."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import FEWEST, BlockStream, logits_rows


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(3, 120, shape, generator=generator) for shape in ((2, 17), (1, 9), (3, 1))
    ]


def ordinary(folder, ids, dtype="auto"):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        return [model(input_ids=i, use_cache=False).logits for i in ids]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_equal_the_ordinary_models_bit_for_bit(any_kinds, dtype):
    stream = BlockStream(Checkpoint(any_kinds), dtype=dtype)
    for ours, theirs in zip(
        stream.logits(batches()), ordinary(any_kinds, batches(), dtype), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_logits_on_a_gpu_equal_the_ordinary_models(any_family):
    model = AutoModelForCausalLM.from_pretrained(any_family).eval().cuda()
    for ids, ours in zip(
        batches(), BlockStream(Checkpoint(any_family), "cuda").logits(batches()), strict=True
    ):
        with torch.no_grad():
            assert torch.equal(ours, model(input_ids=ids.cuda(), use_cache=False).logits)


def test_activations_in_files_change_nothing(llama, tmp_path):
    checkpoint = Checkpoint(llama)
    kept = BlockStream(checkpoint).logits(batches())
    for a, b in zip(kept, BlockStream(checkpoint, place=tmp_path).logits(batches()), strict=True):
        assert torch.equal(a, b)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_shards_and_half_precision(make_checkpoint, tmp_path):
    folder = make_checkpoint(tmp_path / "m", dtype=torch.float16, max_shard_size="20KB")
    checkpoint = Checkpoint(folder)
    assert len({t.file for t in checkpoint.tensors.values()}) > 2
    found = list(BlockStream(checkpoint).logits(batches()))
    assert all(torch.equal(a, b) for a, b in zip(found, ordinary(folder, batches()), strict=True))


def test_one_block_is_in_memory_at_a_time(llama):
    stream = BlockStream(Checkpoint(llama))
    seen = []

    def visit(index, layer, forward):
        present = [all(not p.is_meta for p in block.parameters()) for block in stream.layers]
        seen.append((index, present))
        for _ in forward():
            pass

    stream.run(batches(), visit)
    assert seen == [(i, [i == j for j in range(3)]) for i in range(3)]
    assert all(p.is_meta for p in stream.model.parameters())


def test_a_visit_may_run_twice_and_the_last_pass_counts(llama):
    def visit(index, layer, forward):
        for _ in forward():
            pass
        handle = layer.register_forward_hook(lambda module, args, out: out * 0)
        for _ in forward():
            pass
        handle.remove()

    states = BlockStream(Checkpoint(llama)).run(batches(), visit)
    assert states.get(0, torch.device("cpu")).abs().max() == 0


@pytest.mark.parametrize(
    ("vocabulary", "rows"), [(32_000, 131), (49_152, 85), (262_144, FEWEST), (10**9, FEWEST)]
)
def test_logits_of_few_rows_are_in_memory(vocabulary, rows):
    assert logits_rows(vocabulary) == rows
