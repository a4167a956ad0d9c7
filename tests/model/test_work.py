"""Counts against transformers' own models, caches and PyTorch's counter of FLOPs."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.widths import BlockWidths, block_widths, model_widths
from compressor.model.work import Step, attended, kv_bytes_per_token, moved, parts, seen

LLAMA_7B = BlockWidths(4096, 4096, 4096, 128, 11008, 2, vectors=2 * 4096)


@pytest.fixture(params=["tied", "untied"])
def checkpoint(request, make_checkpoint, tmp_path) -> Checkpoint:
    tied = request.param == "tied"
    return Checkpoint(make_checkpoint(tmp_path / "model", tie_word_embeddings=tied))


def loaded(checkpoint: Checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint.path, attn_implementation="eager").eval()


def check_sizes(checkpoint: Checkpoint) -> None:
    found = parts(model_widths(checkpoint), batch=1, context=8)
    model, read = loaded(checkpoint), checkpoint.family.in_float32
    buffers = sum(b.numel() for name, b in model.named_buffers() if name.endswith(read))
    assert sum(p.parameters for p in found) == model.num_parameters() + buffers
    assert sum(p.bytes for p in found) == checkpoint.bytes


def test_parameters_of_every_family(any_kinds):
    check_sizes(Checkpoint(any_kinds))


def test_parameters_of_a_mixture(any_mixture):
    check_sizes(Checkpoint(any_mixture))


def test_flops_of_a_mixture_are_those_counted(any_mixture):
    """Experts run one by one, whose products the counter knows."""
    tokens, checkpoint = 12, Checkpoint(any_mixture)
    model = loaded(checkpoint)
    model.set_experts_implementation("eager")
    ids = torch.arange(4, 4 + tokens)[None]
    found = counted(model, checkpoint.family, input_ids=ids, logits_to_keep=1)
    for part in parts(model_widths(checkpoint), 1, tokens)[1:-1]:
        if part.widths.state:  # its chunks are padded to 64 tokens
            continue
        each = 4 * part.widths.query + 2 * part.widths.pairs
        masked = each * (tokens**2 - attended(Step(1, tokens, tokens), None))
        assert part.prefill.flops + masked == found[part.name]


def test_a_step_reads_the_experts_that_its_tokens_can_reach(mixture):
    block = model_widths(Checkpoint(mixture)).blocks[0]
    assert (block.experts.count, block.experts.per_token, block.units) == (6, 2, 6)
    one, two, many = (moved(block, Step(n, 1, 1), 2) for n in (1, 2, 40))
    each = 2 * (moved(block, Step(41, 1, 1), 2) - many) // 2  # what a sequence brings of its own
    assert two - one == each + 2 * 2 * block.an_ffn
    assert many - two == 38 * each + 2 * 2 * block.an_ffn


def test_parameters_of_a_tied_and_an_untied_head(checkpoint):
    check_sizes(checkpoint)


def test_bytes_follow_the_dtype(make_checkpoint, tmp_path):
    checkpoint = Checkpoint(make_checkpoint(tmp_path / "model", dtype=torch.bfloat16))
    check_sizes(checkpoint)
    assert model_widths(checkpoint).dtype == torch.bfloat16


def counted(model, family, **call) -> dict[str, int]:
    """FLOPs of every block and of the head in one forward."""
    with torch.no_grad(), FlopCounterMode(display=False, depth=9) as counter:
        model(**call)
    modules = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    root = type(model).__name__
    blocks = range(model.config.num_hidden_layers)
    found = {str(i): modules[f"{root}.{family.layers}.{i}"] for i in blocks}
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    return found | {"head": modules[f"{root}.{name}"]}


def test_flops_of_a_prefill_are_those_counted(any_kinds):
    """But for attention's masked half, which the counter sees and a causal kernel skips."""
    batch, tokens = 2, 12
    checkpoint = Checkpoint(any_kinds)
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    found = counted(loaded(checkpoint), checkpoint.family, input_ids=ids, logits_to_keep=1)
    for part in parts(model_widths(checkpoint), batch, tokens)[1:]:
        masked = 0
        if part.widths and part.widths.state:  # its chunks are padded to 64 tokens
            continue
        if part.widths:
            step = Step(batch, tokens, tokens)
            square = tokens**2 - attended(step, part.widths.window)
            masked = 4 * batch * part.widths.query * square
        assert part.prefill.flops + masked == found[part.name]


def test_flops_of_a_decode_step_are_those_counted(checkpoint):
    batch, context = 2, 9
    model = loaded(checkpoint)
    ids = torch.zeros(batch, context, dtype=torch.long)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids[:, 1:], past_key_values=cache)
    found = counted(model, checkpoint.family, input_ids=ids[:, :1], past_key_values=cache)
    estimated = parts(model_widths(checkpoint), batch, context)
    assert {p.name: p.decode.flops for p in estimated[1:]} == found
    assert estimated[0].decode.flops == estimated[0].prefill.flops == 0


@pytest.mark.parametrize("context", [4, 17])
def test_cache_is_as_large_as_transformers_makes_it(any_kinds, context):
    """A dynamic cache drops the oldest position of a full window before the next token comes."""
    batch = 2
    checkpoint = Checkpoint(any_kinds)
    model = loaded(checkpoint)
    static = StaticCache(config=model.config, max_cache_len=context)
    dynamic = DynamicCache(config=model.config)
    ids = torch.zeros(batch, context, dtype=torch.long)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=static)
        model(input_ids=ids, past_key_values=dynamic)
    # Falcon's class repeats the keys and values of a group before it keeps them; others' do not.
    times = checkpoint.queries_per_group if checkpoint.family.model_type == "falcon" else 1
    for part in parts(model_widths(checkpoint), batch, context)[1:-1]:
        layers = static.layers[int(part.name)], dynamic.layers[int(part.name)]
        if part.widths.state:
            kept = [layer.recurrent_states[0] for layer in layers]
            assert all(state.dtype == torch.float32 for state in kept)
            assert {state.nbytes for state in kept} == {part.kv_bytes}
            continue
        fixed, grown = (layer.keys.nbytes + layer.values.nbytes for layer in layers)
        assert times * part.kv_bytes == fixed
        full = context >= (part.widths.window or math.inf)
        assert times * part.kv_bytes == grown + full * batch * times * part.kv_bytes_per_token


@pytest.mark.parametrize("window", [None, 1, 5, 40])
@pytest.mark.parametrize(("tokens", "context"), [(1, 1), (1, 12), (12, 12), (4, 12), (7, 40)])
def test_attended_and_seen_positions_one_by_one(window, tokens, context):
    step = Step(1, tokens, context)
    pairs = [
        (token, position)
        for token in range(context - tokens, context)
        for position in range(token + 1)
        if token - position < (window or context)
    ]
    assert attended(step, window) == len(pairs)
    assert seen(replace(LLAMA_7B, window=window), step) == len({p for _, p in pairs})


def test_bytes_of_a_decode_step_by_hand():
    """LLaMA-7B in two bytes: 202.4 M parameters, 16 KiB of cache a token, 1,000 positions."""
    weights = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    cache = 2 * 4096 * (1000 + 1)
    ends = 4096 * (4 + 4 + 2) + 3 * 11008
    assert moved(LLAMA_7B, Step(1, 1, 1000), 2) == 2 * (weights + cache + ends)
    assert moved(LLAMA_7B, Step(8, 1, 1000), 2) == 2 * (weights + 8 * (cache + ends))
    assert kv_bytes_per_token(LLAMA_7B, 2) == 16_384


def header(checkpoint: Checkpoint, block: int) -> dict:
    names = checkpoint.block_tensors(block)
    return {name: checkpoint.tensors[checkpoint.block_name(block, name)] for name in names}


def test_blocks_of_different_widths_each_cost_their_own(make_checkpoint, tmp_path):
    """Widths are the tensors': two models' blocks in one model cost what each costs."""
    sizes = {"intermediate_size": 20, "num_attention_heads": 2, "num_key_value_heads": 1}
    wide = model_widths(Checkpoint(make_checkpoint(tmp_path / "wide")))
    narrow = model_widths(Checkpoint(make_checkpoint(tmp_path / "narrow", **sizes)))
    mixed = replace(wide, blocks=(wide.blocks[0], narrow.blocks[1], wide.blocks[2]))
    expected = parts(wide, 2, 9)
    expected[2] = parts(narrow, 2, 9)[2]
    assert parts(mixed, 2, 9) == expected
    assert (narrow.blocks[1].kv_heads, narrow.blocks[1].heads, narrow.blocks[1].ffn) == (1, 2, 20)


def test_matrices_the_table_does_not_name(llama):
    checkpoint = Checkpoint(llama)
    tensors = header(checkpoint, 0)
    assert block_widths(tensors, checkpoint.family, checkpoint.head_dim).ffn == 48
    tensors["mlp.router.weight"] = tensors["mlp.up_proj.weight"]
    with pytest.raises(InputError, match="has other matrices"):
        block_widths(tensors, checkpoint.family, checkpoint.head_dim)
