"""Bloom and Baichuan-13B: heads keep the slopes they had, in blocks that have lost others."""

import json
import math
from copy import deepcopy

import pytest
import torch
from jobs import compress, said
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.bloom.modeling_bloom import _get_alibi_slopes

from compressor.analysis.inspection import inspect
from compressor.errors import InputError, VerificationError
from compressor.job.result import make_record
from compressor.model.checkpoint import Checkpoint
from compressor.model.families.modeling_alibi import BAICHUAN2_VOCABULARY, slopes
from compressor.model.per_layer import HEADS, KEY, code_of
from compressor.model.stream import BlockStream
from compressor.model.tensors import SINGLE
from compressor.planning.plan import Plan
from compressor.repairing.streaming import Repair
from compressor.text.texts import read_text
from compressor.text.tokens import tokenize
from compressor.verification.child import verify_here
from compressor.verification.verify import verify
from compressor.writing.cuts import write
from compressor.writing.record import write_record

IDS = torch.arange(3, 40)[None]
SIZES = {"num_attention_heads": 6, "hidden_size": 24}
KEPT = ([0, 2, 5], [1, 2, 3, 4], [5])
MODELS = ("baichuan", "bloom")
BLOOM = pytest.mark.parametrize("source", ["bloom"], indirect=True)  # for what only it has


@pytest.fixture(scope="module", params=MODELS)
def source(request, make_checkpoint, tmp_path_factory):
    """Of six heads, which is no power of two."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    tied = {"tie_word_embeddings": request.param == "bloom"}
    return make_checkpoint(folder, request.param, **SIZES, **tied)


def plan_of(kept=KEPT, ffn=(40, 21, 48)) -> Plan:
    blocks = [{"attention": a, "ffn": [*range(n)]} for a, n in zip(kept, ffn, strict=True)]
    return Plan(blocks, {"scores": {}})


def written(source, folder, plan, layout="per-layer"):
    checkpoint = Checkpoint(source)
    container = write(checkpoint, plan, folder, layout)
    write_record(folder, make_record(checkpoint, plan, layout, container))
    return folder


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


@torch.no_grad()
def logits(model, ids=IDS, **options):
    return model(ids, **options).logits


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 40, 112])
def test_slopes(heads):
    found = slopes(range(heads), heads)
    torch.testing.assert_close(found, _get_alibi_slopes(heads, "cpu"), rtol=1e-5, atol=0)
    assert found.tolist() == pytest.approx(published(heads), rel=1e-6)
    assert torch.equal(slopes([0, heads - 1], heads), found[[0, heads - 1]])


def published(heads: int) -> list[float]:
    """The recursion of the ALiBi paper's code."""
    power = math.log2(heads)
    if power.is_integer():
        start = 2 ** -(2 ** -(power - 3))
        return [start ** (i + 1) for i in range(heads)]
    closest = 2 ** math.floor(power)
    return published(closest) + published(2 * closest)[0::2][: heads - closest]


@torch.no_grad()
def baichuan(folder, ids: torch.Tensor) -> torch.Tensor:
    """Baichuan-13B's published arithmetic in plain torch: logits [tokens, vocabulary]."""
    config, w = json.loads((folder / "config.json").read_text()), load_file(folder / SINGLE)
    heads, blocks, eps = (
        config[n] for n in ("num_attention_heads", "num_hidden_layers", "rms_norm_eps")
    )
    tokens = ids.shape[0]

    def norm(x, name):
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * w[f"{name}.weight"]

    position = torch.arange(tokens)
    bias = torch.tensor(published(heads))[:, None, None] * position
    bias = bias.masked_fill(position[None] > position[:, None], -torch.inf)
    x = w["model.embed_tokens.weight"][ids]
    for b in range(blocks):
        at = f"model.layers.{b}"
        read = norm(x, f"{at}.input_layernorm") @ w[f"{at}.self_attn.W_pack.weight"].T
        q, k, v = (part.view(tokens, heads, -1).transpose(0, 1) for part in read.chunk(3, -1))
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + bias
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(tokens, -1)
        x = x + mixed @ w[f"{at}.self_attn.o_proj.weight"].T
        read = norm(x, f"{at}.post_attention_layernorm")
        gate, up, down = (w[f"{at}.mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
        x = x + (torch.nn.functional.silu(read @ gate.T) * (read @ up.T)) @ down.T
    head = w["lm_head.weight"]
    if config["vocab_size"] == BAICHUAN2_VOCABULARY:
        head = head / head.norm(dim=1, keepdim=True)
    return norm(x, "model.norm") @ head.T


@pytest.mark.parametrize("vocabulary", [120, BAICHUAN2_VOCABULARY])
def test_the_stream_is_the_published_arithmetic(make_checkpoint, tmp_path, vocabulary):
    folder = make_checkpoint(tmp_path / "model", "baichuan", vocab_size=vocabulary, **SIZES)
    (found,) = BlockStream(Checkpoint(folder)).logits([IDS])
    torch.testing.assert_close(found[0], baichuan(folder, IDS[0]), rtol=1e-4, atol=1e-5)


def test_it_computes_what_the_masked_source_does(source, tmp_path):
    """Where stock Bloom runs all heads, and the package's class those that are left."""
    plan = plan_of()
    small = written(source, tmp_path / "small", plan)
    padded = written(source, tmp_path / "padded", plan, "padded")
    assert verify_here(small, source)["logits_difference"] <= 1e-5
    assert verify_here(padded, source)["logits_difference"] <= 1e-5
    assert Checkpoint(small).heads_left == [*KEPT]
    reference = logits(load(padded))
    for attention in ("eager",) if Checkpoint(source).family.stock else ("eager", "sdpa"):
        model = load(small)
        model.set_attn_implementation(attention)
        torch.testing.assert_close(logits(model), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["per-layer", "padded"])
def test_cut_twice_it_still_has_the_first_slopes(source, tmp_path, layout):
    once = written(source, tmp_path / "once", plan_of())
    again = plan_of(([0, 2], [1, 3], [0]), (40, 10, 24))
    twice = written(once, tmp_path / "twice", again, layout)
    assert verify_here(twice, once)["logits_difference"] <= 1e-5
    if layout == "per-layer":
        assert Checkpoint(twice).heads_left == [[0, 5], [2, 4], [5]]


def test_padding_on_the_left_changes_nothing(source, tmp_path):
    model = load(written(source, tmp_path / "small", plan_of()))
    short, long = IDS[:, :5], IDS[:, 10:19]
    ids = torch.cat((torch.cat((torch.zeros(1, 4, dtype=torch.long), short), 1), long))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    both = logits(model, ids, attention_mask=mask)
    torch.testing.assert_close(both[0, 4:], logits(model, short)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1], logits(model, long)[0], rtol=1e-4, atol=1e-5)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    alone = model.generate(short, **options)[0, 5:]
    for cache in ("dynamic", "static"):
        found = model.generate(ids, attention_mask=mask, cache_implementation=cache, **options)
        assert torch.equal(found[0, 9:], alone)


@pytest.mark.fresh_process
def test_equal_widths_are_of_the_layout_that_is_asked_for(source, tmp_path):
    plan = plan_of(([0, 1], [2, 3], [4, 5]), (24, 24, 24))
    family = Checkpoint(source).family
    if family.stock:
        with pytest.raises(InputError, match=r"4 x hidden .* use --layout per-layer"):
            write(Checkpoint(source), plan, tmp_path / "out", "uniform")
        assert not (tmp_path / "out").exists()
    for layout in ("per-layer", *([] if family.stock else ["uniform"])):
        small = written(source, tmp_path / layout, plan, layout)
        assert all((small / file.name).exists() for file in code_of(family))
        check = verify if layout == "per-layer" else verify_here
        assert check(small, source)["logits_difference"] <= 1e-5
        with pytest.raises((RuntimeError, ValueError), match=r"raising an error|code"):
            AutoModelForCausalLM.from_pretrained(small)
        answers = {row["target"]: row["loads"] for row in inspect(small)["loads"]}
        assert [loads for target, loads in answers.items() if "(installed)" in target] == [False]
        assert [v for k, v in answers.items() if "(trust_remote_code)" in k] == [True]
        assert inspect(small)["problems"] == []


@pytest.mark.parametrize(
    "heads", [[0, 1], [0, 2, 2], [2, 0, 5], [0, 2, 6], "0, 2, 5", [0, 2, -1]], ids=str
)
def test_heads_that_cannot_be(source, tmp_path, heads):
    small = written(source, tmp_path / "small", plan_of())
    config = json.loads((small / "config.json").read_text())
    config[KEY]["0"][HEADS] = heads
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"they are 3 of the numbers 0 to 5, in order"):
        Checkpoint(small)


def test_other_slopes_are_found(source, tmp_path):
    small = written(source, tmp_path / "small", plan_of())
    config = json.loads((small / "config.json").read_text())
    config[KEY]["0"][HEADS] = [0, 1, 5]
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(VerificationError, match="differ from the masked source's"):
        verify_here(small, source)


@pytest.mark.parametrize("kind", ["bias", "ridge"])
def test_a_constant_channel_is_folded_into_the_bias(make_checkpoint, text_file, tmp_path, kind):
    """FFN channels that no input reaches, and a head whose values are all bias."""
    source = make_checkpoint(tmp_path / "model", "bloom", tie_word_embeddings=True, **SIZES)
    tensors = load_file(source / SINGLE)
    head_dim, lost, head = 4, [3, 50, 95], 2
    for b in range(3):
        tensors[f"h.{b}.mlp.dense_h_to_4h.weight"][lost] = 0
        rows = slice((3 * head + 2) * head_dim, 3 * (head + 1) * head_dim)
        tensors[f"h.{b}.self_attention.query_key_value.weight"][rows] = 0
    save_file(tensors, source / SINGLE, {"format": "pt"})
    checkpoint = Checkpoint(source)
    left = {
        "attention": [h for h in range(6) if h != head],
        "ffn": [c for c in range(96) if c not in lost],
    }
    plan = Plan([left] * 3, {"scores": {}})
    tokens = tokenize(read_text(str(text_file)), checkpoint.tokenizer(), 24, 20)
    stream = BlockStream(checkpoint)
    repair = Repair(stream, plan, tokens, kind)
    write(checkpoint, plan, tmp_path / "out", "per-layer", changes=repair.blocks())
    whole, cut = (
        next(BlockStream(Checkpoint(f)).logits([IDS])) for f in (source, tmp_path / "out")
    )
    tolerance = {"bias": 1e-5, "ridge": 1e-2}[kind]
    assert (whole - cut).abs().max() <= tolerance * whole.std()
    write(checkpoint, plan, tmp_path / "plain", "per-layer")
    (bare,) = BlockStream(Checkpoint(tmp_path / "plain")).logits([IDS])
    assert (whole - bare).abs().max() > 0.05 * whole.std()
    outputs = {"self_attention.dense.bias", "mlp.dense_4h_to_h.bias"}
    assert all(outputs <= {*block["tensors"]} for block in repair.record)
    biases = Checkpoint(tmp_path / "out").read_block(0)
    found = biases["mlp.dense_4h_to_h.bias"]
    block = checkpoint.read_block(0)
    inner = torch.nn.functional.gelu(block["mlp.dense_h_to_4h.bias"][lost], approximate="tanh")
    expected = block["mlp.dense_4h_to_h.bias"] + block["mlp.dense_4h_to_h.weight"][:, lost] @ inner
    if kind == "bias":
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@BLOOM
def test_a_residual_after_the_norm_is_refused(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    config["apply_residual_connection_post_layernorm"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="apply_residual_connection_post_layernorm adds"):
        Checkpoint(tmp_path)


@BLOOM
def test_both_ways_that_hub_configs_name_settings(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    other = deepcopy(config)
    other["num_attention_heads"] = other.pop("n_head")
    other["n_embed"] = other.pop("hidden_size")
    (tmp_path / SINGLE).write_bytes((source / SINGLE).read_bytes())
    found = []
    for settings in (config, other):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        out = tmp_path / str(len(found))
        write(Checkpoint(tmp_path), plan_of(), out, "per-layer")
        assert inspect(out)["problems"] == []
        found.append(logits(load(out)))
    assert torch.equal(*found)


def test_the_whole_job(source, text_file, tmp_path, capsys):
    quick = ["--calibration", text_file, "--length", 24, "--samples", 6, "--json"]
    quick += ["--max-perplexity-ratio", "off", "--evaluation", text_file]
    stock = Checkpoint(source).family.stock
    asked = [source, tmp_path / "all", "--keep-blocks", 0.7, "--layout", "all", *quick]
    assert compress(*asked) == 0
    found = json.loads(capsys.readouterr().out)
    layouts = ["per-layer", "padded"] if stock else ["uniform", "per-layer", "padded"]
    assert [r["dest"].split("keep-blocks-0.7-")[1] for r in found] == layouts
    assert all(r["verified"].startswith("logits within") for r in found)
    cards = [(tmp_path / "all" / r["dest"].split("/")[-1] / "README.md").read_text() for r in found]
    told = ["trust_remote_code=True" in card for card in cards]
    assert told == [r["layout"] == "per-layer" or not stock for r in found]
    if stock:
        assert compress(source, tmp_path / "no", "--keep", 0.7, *quick) == 2
        assert "use --layout per-layer" in said(capsys)
    else:
        assert any("has no class of baichuan" in w for r in found for w in r["warnings"])
        options = [*quick, "--quantize", "w4a16"]
        assert compress(source, tmp_path / "no", "--keep", 0.7, *options) == 2
        assert "packs weights for transformers' own" in said(capsys)
