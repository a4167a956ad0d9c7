"""Models whose blocks are of several kinds: some have linear attention, or one FFN and no experts, and
keep it whole.
"""

import json
import shutil

import pytest
import torch
from edits import edit_config, edit_tensors
from experts import HYBRID, MIXTURES
from jobs import compress
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compressor.analysis.doctor import examine
from compressor.analysis.estimate.by_width import table
from compressor.analysis.inspection import inspect
from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.fewer_blocks import FewerBlocks
from compressor.model.groups import counts
from compressor.model.layers import captured
from compressor.model.modules import replaced_forward
from compressor.model.stream import BlockStream
from compressor.planning.costs import Costs
from compressor.planning.lattice import lattice
from compressor.planning.plan import Plan
from compressor.planning.uniform import solve
from compressor.repairing.streaming import Repair
from compressor.text.tokens import TokenSet
from compressor.verification.child import verify_here
from compressor.writing.cuts import write

IDS = torch.arange(4, 28)[None]
FILE = "model.safetensors"
TYPES = HYBRID["layer_types"]
KEPT = [0, 2, 3]  # KV groups


@pytest.fixture
def hybrid(random_family):
    return random_family("qwen3_5_text")


@pytest.fixture
def copied(hybrid, tmp_path):
    return shutil.copytree(hybrid, tmp_path / "model")


@pytest.fixture(scope="module")
def interleaved(make_checkpoint, tmp_path_factory):
    """A mixture whose second and fourth block have one FFN each, by either setting."""
    folder = tmp_path_factory.mktemp("interleaved") / "model"
    sizes = {"num_hidden_layers": 5, "decoder_sparse_step": 1, "mlp_only_layers": [1, 3]}
    return make_checkpoint(folder, "qwen3_moe", **MIXTURES["qwen3_moe"] | sizes)


def plan_of(source, ffn) -> Plan:
    """KV groups of those that have any, and these units of every FFN that is cut."""
    cut = source.family.experts is None
    return Plan(
        [
            {
                "attention": [g for g in (KEPT if cut else range(4)) if g < units["attention"]],
                "ffn": [*ffn] if units["ffn"] else [],
            }
            for units in source.block_units
        ],
        {"scores": {}},
    )


def texts(count=6) -> TokenSet:
    generator = torch.Generator().manual_seed(3)
    return TokenSet([torch.randint(3, 100, (20,), generator=generator) for _ in range(count)])


def said(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_linear_attention_has_no_units_and_stays_as_it_is(hybrid, tmp_path):
    source = Checkpoint(hybrid)
    assert counts(source.block_units, "attention") == {4}
    assert [units["attention"] for units in source.block_units] == [0, 4, 0, 4]
    write(source, plan_of(source, range(0, 48, 3)), tmp_path / "out")
    before, after = load_file(hybrid / FILE), load_file(tmp_path / "out" / FILE)
    linear = [name for name in before if ".linear_attn." in name]
    assert linear and before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in linear)
    assert {n for n in before if before[n].shape != after[n].shape} == {
        name
        for name in before
        if name.endswith("_proj.weight") and (".mlp." in name or ".self_attn." in name)
    }


@torch.no_grad()
def test_gates_go_with_their_heads(hybrid):
    """What enters o_proj of the cut attention is what enters it of the kept heads, in float64."""
    source = Checkpoint(hybrid)
    part, sizes = source.family.attention[0], source.channel_sizes
    assert part.tensor == "self_attn.q_proj.weight" and part.size(sizes) == 2 * sizes["q"]
    model = AutoModelForCausalLM.from_pretrained(hybrid, dtype=torch.float64)
    attention = model.model.layers[1].self_attn
    whole = captured(attention.o_proj, lambda: model(IDS))
    for name in "qkv":
        part = next(p for p in source.family.attention if p.tensor.endswith(f"{name}_proj.weight"))
        channels = part.channels(KEPT, 4, sizes)
        weight = attention.get_parameter(f"{name}_proj.weight")
        attention.get_submodule(f"{name}_proj").weight = torch.nn.Parameter(weight[channels])
    small = captured(attention.o_proj, lambda: model(IDS))
    kept = source.family.attention[-1].channels(KEPT, 4, sizes)
    torch.testing.assert_close(small, whole[..., kept], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["hybrid", "interleaved"])
def test_a_size_is_what_is_written(kind, request, tmp_path):
    folder = request.getfixturevalue(kind)
    source = Checkpoint(folder)
    costs = Costs.of(source)
    widths = solve(Target("keep-blocks", 0.8), source, lattice(source))
    plan = Plan([{g: [*range(n)] for g, n in width.items()} for width in widths])
    write(source, plan, tmp_path / "out")
    written = Checkpoint(tmp_path / "out")
    assert written.parameters == costs.size(widths, "params") < source.parameters
    assert costs.size(source.block_units, "params") == source.parameters
    # The share is of all matrices of the blocks, whatever stays whole of them.
    matrices = sum(
        t.numel
        for block in range(source.blocks)
        for name, t in source.block_entries(block).items()
        if len(t.shape) > 1 and not name.startswith("mlp.shared_expert")
    )
    assert costs.prunable == matrices


@pytest.mark.parametrize("kind", ["hybrid", "interleaved"])
def test_a_repaired_cut_is_what_the_masked_source_computes(kind, request, tmp_path):
    """Each kind of block toward what it was; what is refitted lowers the held-back error."""
    folder = request.getfixturevalue(kind)
    source = Checkpoint(folder)
    plan, stream = plan_of(source, range(4 if kind == "interleaved" else 24)), BlockStream(source)
    repair = Repair(stream, plan, texts(), "ridge")
    write(source, plan, tmp_path / "out", changes=repair.blocks())
    record = {"plan": {"blocks": plan.blocks, "about": plan.about}, "repair": repair.about}
    (tmp_path / "out/compression.json").write_text(json.dumps(record))
    assert verify_here(tmp_path / "out", folder)["logits_difference"] <= 1e-4
    assert all(block["steps"] for block in repair.record[1:])
    for block, units in zip(repair.record, source.block_units, strict=True):
        whole = not (units["attention"] and units["ffn"])
        assert not (whole and "attention" in block["steps"])  # no refit of what stays whole
        for step in block["steps"].values():
            assert step["after"] <= step["before"]


def test_blocks_with_one_ffn_are_streamed_as_transformers_computes_them(interleaved):
    source = Checkpoint(interleaved)
    assert [units["ffn"] for units in source.block_units] == [6, 0, 6, 0, 6]
    expected = AutoModelForCausalLM.from_pretrained(interleaved)(IDS).logits
    (found,) = BlockStream(source).logits([IDS])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert [row.get("experts", 0) for row in inspect(interleaved)["blocks"]] == [6, 0, 6, 0, 6]
    assert not inspect(interleaved)["problems"]


@torch.no_grad()
def passing_on(folder, dropped) -> torch.Tensor:
    """Logits of the model whose dropped blocks pass the stream on."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    layers = [model.model.layers[block] for block in dropped]
    with replaced_forward(layers, lambda _, hidden, *args, **more: hidden):
        return model(IDS).logits


@pytest.mark.parametrize("steps", [{}, {"decoder_sparse_step": 2, "mlp_only_layers": []}])
@torch.no_grad()
def test_what_is_said_of_numbers_stays_with_the_blocks(make_checkpoint, tmp_path, steps):
    """A list of numbers, or every second block: fewer blocks have the experts that they had."""
    sizes = {"num_hidden_layers": 4, "mlp_only_layers": [0, 2]} | steps
    folder = make_checkpoint(tmp_path / "model", "qwen3_moe", **MIXTURES["qwen3_moe"] | sizes)
    part = FewerBlocks(Checkpoint(folder), [1])
    assert part.written_config["mlp_only_layers"] == [0, 1]
    assert part.written_config["decoder_sparse_step"] == 1
    write(part, Plan.whole(part), tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits
    torch.testing.assert_close(found, passing_on(folder, [1]), rtol=1e-5, atol=1e-5)


def test_some_softmax_attention_stays(hybrid):
    source = Checkpoint(hybrid)
    assert FewerBlocks(source, [1]).config["layer_types"] == [TYPES[0], *TYPES[2:]]
    with pytest.raises(InputError, match=r"blocks 1, 3 cannot be dropped together: .* softmax"):
        FewerBlocks(source, [3, 1])


def add_head(tensors) -> None:
    for name in ("mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight"):
        tensors[name] = torch.ones(8, 8)


def test_a_head_that_foresees_is_left_out(copied, tmp_path):
    """It is of the uncut model, and no setting is left that counts its blocks."""
    edit_tensors(copied, add_head)
    edit_config(copied, mtp_num_hidden_layers=1)
    source = Checkpoint(copied)
    assert any("mtp.fc.weight and 1 more" in note for note in source.notes)
    assert not [name for name in source.tensors if name.startswith("mtp.")]
    write(source, plan_of(source, range(24)), tmp_path / "out")
    assert said(tmp_path / "out")["mtp_num_hidden_layers"] == 0
    assert Checkpoint(tmp_path / "out").notes == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_types": [*TYPES, TYPES[0]]}, "has 5 entries in layer_types, and 4 blocks"),
        ({"layer_types": TYPES[:3]}, "has 3 entries in layer_types, and 4 blocks"),
        ({"layer_types": ["linear_attention"] * 4}, "none of its blocks has softmax attention"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types name 'sliding_attention'"),
        ({"layer_types": TYPES[::-1]}, "lacks the tensor model.layers.0.self_attn.q_proj.weight"),
    ],
)
def test_patterns_that_are_not_of_the_model_are_named(copied, settings, message):
    edit_config(copied, **settings)
    with pytest.raises(InputError, match=message):
        Checkpoint(copied)


def test_a_pattern_of_another_family_that_is_too_long(random_family, tmp_path):
    folder = shutil.copytree(random_family("smollm3"), tmp_path / "model")
    edit_config(folder, no_rope_layers=[1, 0, 1, 1])
    with pytest.raises(InputError, match="has 4 entries in no_rope_layers, and 3 blocks"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "asked",
    [["--quantize", "w4a16", "--keep", 0.8], ["--sparsity", 0.5]],
    ids=["quantize", "zeros"],
)
def test_what_takes_blocks_of_one_kind_refuses(hybrid, text_file, tmp_path, capsys, asked):
    assert compress(hybrid, tmp_path / "out", *asked, "--calibration", text_file) == 2
    assert "qwen3_5_text are of several kinds" in " ".join(capsys.readouterr().err.split())


def test_tables_and_mends_refuse(hybrid):
    with pytest.raises(InputError, match="several kinds, and a table is of one block for all"):
        table(hybrid)
    with pytest.raises(InputError, match=r"several kinds \(qwen3_5_text\), which are not mended"):
        examine(hybrid)


def test_a_whole_job(hybrid, text_file, tmp_path, capsys):
    """Depth and width together, the splits compared by their measured loss; verified."""
    out = tmp_path / "out"
    given = ["--drop-blocks", 1, "--keep-blocks", 0.6, "--allocate", "measured", "--length", 32]
    more = ["--samples", 6, "--calibration", text_file, "--json"]
    assert compress(hybrid, out, *given, *more) == 0
    result = json.loads(capsys.readouterr().out)
    assert "logits within" in result["verified"] and len(result["dropped_blocks"]) == 1
    left = [kind for block, kind in enumerate(TYPES) if block not in result["dropped_blocks"]]
    assert said(out)["layer_types"] == left


@pytest.mark.parametrize("kind", ["llama4", "llama4_text"])
def test_llama_4_is_refused_by_name(copied, kind):
    edit_config(copied, model_type=kind)
    with pytest.raises(InputError, match=f"type '{kind}' is not supported: its experts read what"):
        Checkpoint(copied)
