"""GGUF files, read back by llama.cpp's own package. `make serve` has llama.cpp run such files."""

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from edits import edit_config
from experts import MIXTURES as EXPERTS
from jobs import said, stage
from serving.models import byte_level
from transformers import AutoConfig, AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from unequal import plan_of, written

import compressor
from compressor.errors import InputError, MachineError
from compressor.model.checkpoint import Checkpoint
from compressor.planning.plan import Plan
from compressor.writing.gguf import TYPES, export
from compressor.writing.gguf.architectures import MIXTURES, architecture_of
from compressor.writing.gguf.tensors import FACTORS, extra_tensors, rotated, written_names
from compressor.writing.gguf.vocabulary import BYTE, CONTROL, UNUSED, before_of, vocabulary_of
from compressor.writing.tokenizer_class import strings

ROWS = 310


@pytest.fixture
def make(make_checkpoint, tmp_path):
    def make(**options) -> Path:
        folder = make_checkpoint(tmp_path / "source", **{"vocab_size": ROWS} | options)
        texts = ["a text to find merges in, and another text"]
        byte_level(texts, "{{ messages }}").save_pretrained(folder)
        return folder

    return make


def field(reader, name: str):
    return reader.get_field(name).contents()


@pytest.mark.parametrize("layout", ["uniform", "nas", "per-layer"])
def test_what_is_read_back(make, tmp_path, layout):
    plans = {
        "uniform": Plan([{"attention": [0, 3], "ffn": [*range(20)]}] * 3, {"scores": {}}),
        "nas": Plan(
            [{"attention": [0, 3], "ffn": [*range(w)]} for w in (20, 48, 8)], {"scores": {}}
        ),
        "per-layer": plan_of("0.7"),
    }
    folder = written(make(), tmp_path / "cut", plans[layout], layout)
    file = compressor.export(folder, tmp_path / "out.gguf", "f32")
    source, reader = Checkpoint(folder), gguf.GGUFReader(file)
    arch = field(reader, "general.architecture")
    assert arch == ("llama" if layout == "uniform" else "deci")
    units = source.block_units
    for key, values in (
        ("attention.head_count", [2 * u["attention"] for u in units]),
        ("attention.head_count_kv", [u["attention"] for u in units]),
        ("feed_forward_length", [u["ffn"] for u in units]),
    ):
        assert field(reader, f"{arch}.{key}") == (values[0] if layout == "uniform" else values)
    for key in ("key_length", "value_length"):
        assert field(reader, f"{arch}.attention.{key}") == field(
            reader, f"{arch}.rope.dimension_count"
        )
    assert field(reader, f"{arch}.attention.key_length") == source.head_dim
    assert field(reader, f"{arch}.rope.freq_base") == pytest.approx(10_000.0)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    names = written_names(source)
    assert {*tensors} == {name for (name,) in names.values()}
    for name, (written_name,) in names.items():
        expected = rotated(written_name, source.read([name])[name], source.head_dim).numpy()
        assert np.array_equal(tensors[written_name].data, expected)


@pytest.mark.parametrize(
    ("kind", "within"), [("f32", 0), ("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 2e-2)]
)
def test_types(make, tmp_path, kind, within):
    folder = make(intermediate_size=40)  # 32 channels fill a group of q8_0, 40 do not
    export(Checkpoint(folder), tmp_path / "out.gguf", kind)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    found = {t.name: t for t in reader.tensors}
    assert field(reader, "general.file_type") == gguf.LlamaFileType[TYPES[kind][1]]
    assert found["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert found["blk.0.attn_v.weight"].tensor_type.name == TYPES[kind][0]
    ragged = "F16" if kind == "q8_0" else TYPES[kind][0]
    assert found["blk.0.ffn_down.weight"].tensor_type.name == ragged
    tensor = found["blk.0.attn_v.weight"]
    values = gguf.dequantize(tensor.data, tensor.tensor_type)
    expected = Checkpoint(folder).read_block(0)["self_attn.v_proj.weight"].numpy()
    assert abs(values - expected).max() <= within * abs(expected).max()


@pytest.mark.parametrize("heads", [1, 3])
def test_pairs_that_turn_together(heads):
    """Turned as llama.cpp does, rotated queries are what transformers' turned ones are, rotated."""
    torch.manual_seed(0)
    size, position = 8, 5.0
    queries = torch.randn(heads * size, 4, dtype=torch.float64)
    angles = position * 100.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = queries.unflatten(0, (heads, 2, size // 2)).unbind(1)
    theirs = torch.cat((first * cos - second * sin, second * cos + first * sin), 1).flatten(0, 1)
    pairs = rotated("blk.0.attn_q.weight", queries, size).unflatten(0, (heads, size // 2, 2))
    even, odd = pairs.unbind(2)
    ours = torch.stack((even * cos - odd * sin, odd * cos + even * sin), 2).flatten(0, 2)
    torch.testing.assert_close(ours, rotated("blk.0.attn_q.weight", theirs, size))
    assert rotated("blk.0.attn_v.weight", queries, size) is queries


def test_factors_of_llama3(make):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    source = Checkpoint(make(rope_parameters=rope, head_dim=16))
    plain = 1 / 500_000.0 ** (torch.arange(0, 16, 2).double() / 16)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](source.model_config(), "cpu")
    found = extra_tensors(source)[FACTORS].double()
    torch.testing.assert_close(found, plain / scaled.double(), rtol=1e-5, atol=0)
    assert len({*found.tolist()}) > 2 and extra_tensors(source)[FACTORS].dtype == torch.float32


def test_the_tokenizer(make, tmp_path):
    folder = make()
    export(Checkpoint(folder), tmp_path / "out.gguf")
    reader, tokenizer = (
        gguf.GGUFReader(tmp_path / "out.gguf"),
        AutoTokenizer.from_pretrained(folder),
    )
    tokens, types = (field(reader, f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    assert len(tokens) == len(types) == ROWS and types[-1] == UNUSED
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens([*range(len(tokenizer))])
    assert types[:2] == [CONTROL] * 2
    assert field(reader, "tokenizer.ggml.pre") == "gpt-2"
    assert field(reader, "tokenizer.chat_template") == "{{ messages }}"
    assert field(reader, "tokenizer.ggml.bos_token_id") == 0
    assert not field(reader, "tokenizer.ggml.add_bos_token")


def pieces_of(text: str, vocabulary) -> list[int]:
    """What llama.cpp makes of a text without special tokens: the best pair of pieces is joined first."""
    known = {token: i for i, token in enumerate(vocabulary.tokens)}
    pieces = [*(("\u2581" * bool(text and vocabulary.space) + text).replace(" ", "\u2581"))]
    while True:
        pairs = [(known.get(a + b), i) for i, (a, b) in enumerate(pairwise(pieces))]
        made = [(-vocabulary.scores[number], i) for number, i in pairs if number is not None]
        if not made:
            break
        _, i = min(made)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    ids = []
    for piece in pieces:
        single = [known.get(f"<0x{byte:02X}>") for byte in piece.encode()]
        ids += [known[piece]] if piece in known else single
    return ids


def test_pieces_are_joined_as_transformers_does(stories):
    tokenizer = AutoTokenizer.from_pretrained(stories[0])
    vocabulary = vocabulary_of(tokenizer, 512)
    assert vocabulary.model == "llama" and vocabulary.types.count(BYTE) == 256
    for text in strings():
        assert pieces_of(text, vocabulary) == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("pre", "normalizer", "whole", "words"),
    [
        ({"type": "Whitespace"}, None, False, "pre-tokenizer {'type': 'Whitespace'}"),
        (
            {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
            None,
            False,
            "pre-tokenizer",
        ),
        (
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            None,
            True,
            "pre-tokenizer",
        ),
        (
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            "NFKC",
            False,
            "NFKC",
        ),
        (None, None, False, "pre-tokenizer None"),
    ],
)
def test_what_has_no_name_in_llama_cpp(pre, normalizer, whole, words):
    state = {"pre_tokenizer": pre, "normalizer": normalizer and {"type": normalizer}}
    with pytest.raises(InputError, match="known are gpt-2, smollm") as caught:
        before_of(state | {"model": {"ignore_merges": whole}})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("family", "sizes", "words"),
    [
        ("qwen3", {}, "is of the type qwen3"),
        ("llama", {"hidden_act": "gelu"}, "silu, not gelu"),
        ("mistral", {"sliding_window": 4}, "attend to 4 tokens"),
    ],
)
def test_models_that_it_would_compute_otherwise(make, tmp_path, family, sizes, words):
    with pytest.raises(InputError, match=words):
        export(Checkpoint(make(model_type=family, **sizes)), tmp_path / "out.gguf")
    assert not [*tmp_path.glob("out*")]


def test_refused_in_a_sentence(make, llama, tmp_path, capsys, monkeypatch):
    out, folder = tmp_path / "out.gguf", make()
    for source, file, options, words in (
        (llama, out, [], "The tokenizer is WordLevel"),
        (folder, out, ["--type", "q4_k"], "--type is f32, f16, bf16, q8_0, not 'q4_k'"),
        (folder, tmp_path / "no" / "out.gguf", [], "There is no folder"),
        (tmp_path / "none", out, [], "There is no folder"),
    ):
        assert stage("export", source, file, *options) == 2
        assert words in said(capsys)
        assert not [*tmp_path.glob("out*")]
    assert stage("export", folder, out, "--type", "q8_0") == 0
    assert "out.gguf: llama, q8_0" in " ".join(capsys.readouterr().out.split())
    assert stage("export", folder, out) == 2 and "is there already" in said(capsys)
    edit_config(folder, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    assert stage("export", folder, tmp_path / "2.gguf") == 2
    assert "rotary scaling 'dynamic'" in said(capsys)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MachineError, match="pip install gguf"):
        export(Checkpoint(folder), tmp_path / "3.gguf")


def test_nothing_is_half_written(make, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("compressor.writing.gguf.rotated", killed)
    with pytest.raises(KeyboardInterrupt):
        export(Checkpoint(make()), tmp_path / "out.gguf")
    assert not [*tmp_path.glob("out*")]


def test_scaled_rotations_are_told(make, tmp_path):
    rope = {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 1e4,
        "original_max_position_embeddings": 16,
    }
    folder = make(rope_parameters=rope)
    assert AutoConfig.from_pretrained(folder).rope_parameters["rope_type"] == "yarn"
    export(Checkpoint(folder), tmp_path / "out.gguf")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert field(reader, "llama.rope.scaling.type") == "yarn"
    assert field(reader, "llama.rope.scaling.factor") == 4.0
    assert field(reader, "llama.rope.scaling.original_context_length") == 16


def test_what_ids_differ_in_is_told(make):
    folder = make()
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    assert vocabulary_of(AutoTokenizer.from_pretrained(folder), ROWS).notes == []
    state["added_tokens"][0]["rstrip"] = True
    file.write_text(json.dumps(state | {"normalizer": {"type": "NFC"}}))
    composed, stripped = vocabulary_of(AutoTokenizer.from_pretrained(folder), ROWS).notes
    assert "NFC" in composed and "swallow the spaces" in stripped


def test_a_name_that_llama_cpp_has_rules_for_is_left_out(make, tmp_path):
    for name, told in (("my-Phi-3-small", False), ("my-model", True)):
        folder = make().rename(tmp_path / name)
        export(Checkpoint(folder), tmp_path / f"{name}.gguf")
        field_of = gguf.GGUFReader(tmp_path / f"{name}.gguf").get_field("general.name")
        assert (field_of is not None) is told


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_is_read_back(make, tmp_path, family):
    """Gates and ups are apart there, routers float32 in files of any type."""
    source = Checkpoint(make(model_type=family, **EXPERTS[family]))
    export(source, tmp_path / "out.gguf", "bf16")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    arch = field(reader, "general.architecture")
    assert arch == ("llama" if family == "mixtral" else family.replace("_", ""))
    assert field(reader, f"{arch}.expert_count") == 6
    assert field(reader, f"{arch}.expert_used_count") == 2
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert {*found} == {name for names in written_names(source).values() for name in names}
    block = source.read_block(1)
    gate, up = block["mlp.experts.gate_up_proj"].chunk(2, 1)
    for name, expected in {
        "ffn_gate_exps": gate,
        "ffn_up_exps": up,
        "ffn_down_exps": block["mlp.experts.down_proj"],
        "ffn_gate_inp": block["mlp.gate.weight"],
        "attn_q": block["self_attn.q_proj.weight"],
    }.items():
        tensor = found[f"blk.1.{name}.weight"]
        assert tensor.tensor_type.name == ("F32" if name == "ffn_gate_inp" else "BF16")
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        paired = name == "attn_q" and family == "mixtral"
        if paired:
            expected = rotated("blk.1.attn_q.weight", expected, source.head_dim)
        torch.testing.assert_close(values, expected, rtol=1e-2, atol=0)
    if family == "qwen2_moe":
        assert field(reader, f"{arch}.expert_shared_feed_forward_length") == 24


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm_topk_prob": True}, "norm_topk_prob of .* is True"),
        ({"clip_qkv": 3.0}, "clip_qkv of .* is 3.0, and llama.cpp's olmoe knows nothing of it"),
    ],
)
def test_a_mixture_that_it_would_compute_otherwise(random_family, tmp_path, changes, words):
    folder = shutil.copytree(random_family("olmoe"), tmp_path / "model")
    edit_config(folder, **changes)
    with pytest.raises(InputError, match=words):
        architecture_of(Checkpoint(folder))
