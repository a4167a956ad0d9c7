"""Qwen2 that lost heads: written as Llama with biases, which vLLM loads, or its heads stay."""

import json

import pytest
import torch
from jobs import compress
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compressor.config.target import Target
from compressor.errors import InputError
from compressor.job.result import make_record
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.planning.allocation import allocate
from compressor.planning.lattice import Wanted, lattice
from compressor.planning.plan import Plan
from compressor.planning.uniform import solve
from compressor.repairing.streaming import Repair
from compressor.scoring.score import score
from compressor.text.texts import read_text
from compressor.text.tokens import tokenize
from compressor.verification.child import verify_here
from compressor.writing.containers import container_notes
from compressor.writing.cuts import write
from compressor.writing.record import write_record

SIZES = {"hidden_size": 48, "head_dim": 6}
WINDOWS = SIZES | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
UNEVEN = {"hidden_size": 32, "head_dim": 4}  # which six heads do not divide
WHOLE = [0, 1, 2, 3]


def plan_of(kept, ffn=30) -> Plan:
    return Plan([{"attention": kept, "ffn": [*range(ffn)]}] * 3)


@pytest.fixture
def make(make_checkpoint, tmp_path):
    return lambda **sizes: Checkpoint(make_checkpoint(tmp_path / "source", "qwen2", **sizes))


@pytest.mark.parametrize("tied", [False, True])
def test_it_is_llama_with_an_output_bias_of_zeros(make, text_file, tmp_path, tied):
    source, out = make(**SIZES, tie_word_embeddings=tied), tmp_path / "out"
    tokens = tokenize(read_text(str(text_file)), source.tokenizer(), 24, 8)
    plan = plan_of([0, 2, 3])
    repair = Repair(BlockStream(source), plan, tokens, "ridge")
    assert write(source, plan, out, changes=repair.blocks()) == "llama"
    write_record(out, make_record(source, plan, "uniform", "llama", repair))
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["attention_bias"] is True and config["mlp_bias"] is False
    assert (config["num_attention_heads"], config["head_dim"]) == (6, 6)
    gone = {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"}
    assert not gone & config.keys()
    tensors = load_file(out / "model.safetensors")
    biases = [t for name, t in tensors.items() if name.endswith("o_proj.bias")]
    assert len(biases) == 3 and all(b.shape == (48,) and not b.any() for b in biases)
    model, found = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert type(model).__name__ == "LlamaForCausalLM" and not any(found.values())
    assert verify_here(out, source.path)["logits_difference"] <= 1e-3
    written = Checkpoint(out)
    (note,) = container_notes(source, written, "uniform")
    assert note.startswith("Written as llama: vLLM's class of qwen2 does not load")
    assert "are zeros" in note
    assert write(written, plan_of([0, 1], 8), tmp_path / "again") == "llama"


def test_what_llama_would_take_otherwise_is_said(make, tmp_path):
    """Defaults of the two classes differ; a config that leaves them out means its own."""
    source = make(**SIZES)
    for name in ("bos_token_id", "eos_token_id", "max_position_embeddings"):
        source.written_config.pop(name)
    (source.path / "config.json").write_text(json.dumps(source.written_config))
    write(Checkpoint(source.path), plan_of([1, 2]), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["bos_token_id"] is None and config["eos_token_id"] is None
    assert config["max_position_embeddings"] == 32768


@pytest.mark.parametrize("kept", [[1, 3], WHOLE])
def test_whole_heads_stay_qwen2(make, tmp_path, kept):
    expected = "qwen2" if kept == WHOLE else "llama"
    assert write(make(**SIZES), plan_of(kept), tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("sizes", "counts", "said"),
    [
        (SIZES, [1, 2, 3, 4], None),
        (UNEVEN, [1, 2, 4], "llama refuses 6 heads at hidden size 32"),
        (WINDOWS, [4], "llama has no sliding windows, and this model has"),
    ],
)
def test_heads_that_llama_cannot_have_stay(make, tmp_path, sizes, counts, said):
    source = make(**sizes)
    assert lattice(source).attention == counts
    assert lattice(source, container="qwen2").attention == [1, 2, 3, 4]
    assert lattice(source, layout="per-layer").attention == [1, 2, 3, 4]
    scores = score(source, "random")
    for alike in (True, False):
        made = allocate(
            scores,
            source,
            Target("keep-blocks", 0.75),
            Wanted(layout="uniform" if alike else "per-layer"),
        )
        assert {w["attention"] for w in made.widths()} <= ({*counts} if alike else {1, 2, 3, 4})
    if said is None:
        return
    with pytest.raises(
        InputError, match=f"vLLM's class of qwen2 .* load 6 heads .*{said}"
    ) as caught:
        write(source, plan_of([0, 1, 2]), tmp_path / "out")
    assert "keep all 8 (FFN channels can go), or use --container qwen2" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_ratio_that_needs_heads_says_why_they_stay(make):
    source = make(**WINDOWS)
    with pytest.raises(InputError, match=r"smallest possible is .* llama has no sliding windows"):
        solve(Target("keep", 0.2), source, lattice(source))


def test_asked_for_qwen2_heads_go_and_the_result_says_what_does_not_load_it(
    make, text_file, tmp_path, capsys
):
    source, out = make(**WINDOWS), tmp_path / "out"
    given = [source.path, out, "--keep", 0.5, "--calibration", text_file, "--length", 32]
    given += ["--samples", 4, "--method", "magnitude", "--repair", "none", "--container", "qwen2"]
    assert compress(*given) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "vLLM's class of qwen2 has hidden size / heads channels a head" in shown
    written = Checkpoint(out)
    assert written.family.model_type == "qwen2" and written.kv_heads < 4
    # What is cut again keeps the type that alone takes it.
    units = [*range(written.units["attention"])]
    assert write(written, plan_of(units, 8), tmp_path / "again") == "qwen2"


def test_a_source_that_vllm_does_not_load_becomes_one_that_it_does(make, tmp_path):
    source = make(**SIZES)
    write(source, plan_of([0, 1, 2]), tmp_path / "cut", container="qwen2")
    cut = Checkpoint(tmp_path / "cut")
    assert write(cut, plan_of([0, 1, 2], 8), tmp_path / "out") == "llama"


def test_blocks_of_their_own_widths_stay_qwen2(make, tmp_path):
    plan = Plan([*plan_of([0, 1, 3]).blocks[:2], *plan_of(WHOLE).blocks[:1]])
    assert write(make(**WINDOWS), plan, tmp_path / "out", "per-layer") == "qwen2"


@pytest.mark.parametrize("kind", ["params", "bytes"])
def test_zeros_count_where_the_size_is_a_limit(make, tmp_path, kind):
    source = make(**SIZES)
    scores, whole = score(source, "random"), {"params": source.parameters, "bytes": source.bytes}
    for share in torch.linspace(0.5, 0.95, 12).tolist():
        target = Target(kind, int(share * whole[kind]))
        plan, out = allocate(scores, source, target), tmp_path / f"{share}"
        write(source, plan, out)
        written = Checkpoint(out)
        reached = {"params": written.parameters, "bytes": written.bytes}[kind]
        assert reached <= target.value
