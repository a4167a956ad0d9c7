"""The schemas of plans and scores: they say what is written, and agree with the reader."""

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from jobs import compress, said, stage
from jsonschema import Draft202012Validator
from safetensors.torch import save_file

import compressor
from compressor.config.layouts import LAYOUTS
from compressor.config.target import Target
from compressor.errors import InputError
from compressor.job.depth.planning import plan_of_depth
from compressor.job.hidden.narrowing import plan_of_hidden
from compressor.model.checkpoint import Checkpoint
from compressor.model.fewer_blocks import FewerBlocks, without
from compressor.model.fewer_channels import FewerChannels, narrower
from compressor.planning.allocation import allocate
from compressor.planning.lattice import Wanted
from compressor.planning.plan import ABOUT, Plan
from compressor.scoring.methods import CHANNELS, METHODS
from compressor.scoring.scores import SHAPE, Scores
from compressor.writing.record import read_record

PLAN, SCORES, HEADER = (
    Draft202012Validator(
        json.loads((files("compressor") / f"schemas/{name}.schema.json").read_text())
    )
    for name in ("plan", "scores", "scores-header")
)
IDS = torch.randint(3, 110, (6, 24), generator=torch.Generator().manual_seed(0))


def header(file: Path) -> dict:
    """The JSON that a safetensors file begins with, behind its length."""
    data = file.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def fits_scores(file: Path) -> bool:
    """Whether a file is what the schemas say, where it says anything at all."""
    found = header(file)
    if not HEADER.is_valid(found):
        return False
    return SCORES.is_valid(json.loads(found["__metadata__"]["scores"]))


def check_plan(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    PLAN.validate(json.loads((tmp_path / "plan.json").read_text()))
    assert Plan.load(tmp_path / "plan.json") == plan


def check_scores(scores: Scores, tmp_path: Path) -> dict:
    scores.save(tmp_path / "scores.safetensors")
    found = header(tmp_path / "scores.safetensors")
    HEADER.validate(found)
    SCORES.validate(told := json.loads(found["__metadata__"]["scores"]))
    return told


@pytest.mark.parametrize("schema", [PLAN, SCORES, HEADER], ids=["plan", "scores", "header"])
def test_they_are_schemas(schema):
    Draft202012Validator.check_schema(schema.schema)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_scores_of_every_method_and_their_plan(llama, mixture, tmp_path, method):
    model = llama if CHANNELS in METHODS[method].units else mixture
    scores = compressor.score(model, IDS, method, select="score")
    told = check_scores(scores, tmp_path)
    assert told["about"]["method"] == method
    check_plan(compressor.plan(scores, keep_blocks=0.7), tmp_path)


def test_scores_in_another_order_and_of_channels_of_experts(llama, mixture, tmp_path):
    obs = compressor.score(llama, IDS, select="obs", kv_cost="measured")
    assert check_scores(obs, tmp_path)["about"]["kv_cost"] == "measured"
    channels = compressor.score(mixture, method="magnitude", experts="channels")
    assert check_scores(channels, tmp_path)["about"]["experts"] == "channels"
    plan = compressor.plan(channels, keep_blocks=0.7)
    assert plan.about["scores"]["experts"] == "channels"
    check_plan(plan, tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", [Target("keep", 0.8), Target("bytes", 100_000)])
def test_plans_of_every_layout(llama, tmp_path, layout, target):
    source = Checkpoint(llama)
    scores = compressor.score(llama, method="magnitude")
    for how in ("uniform", "global")[: 1 + (layout == "per-layer")]:
        check_plan(allocate(scores, source, target, Wanted(layout=layout), (), how), tmp_path)


@pytest.mark.parametrize("how", ["exact", "measured", "besa"])
def test_plans_and_scores_of_what_is_measured(llama, tmp_path, how):
    scores = compressor.score(llama, IDS, select="score")
    options = {"keep_blocks": 0.7, "allocate": how, "layout": "per-layer", "repair": "none"}
    plan = compressor.plan(scores, text=IDS, **options)
    assert "held_back" in plan.about
    check_plan(plan, tmp_path)
    assert ("losses" in check_scores(scores, tmp_path)["measured"]["names"]) == (how == "measured")


def test_plans_of_depth_and_of_the_stream(random_family, llama, tmp_path):
    shorter = FewerBlocks(Checkpoint(llama), [1])
    check_plan(plan_of_depth(shorter, Target("drop-blocks", 1), 0), tmp_path)
    narrow = FewerChannels(Checkpoint(llama), [*range(24)], {"energy": 0.75})
    check_plan(plan_of_hidden(narrow, Target("keep-hidden", 0.75), 0), tmp_path)
    hybrid = compressor.score(random_family("qwen3_5_text"), method="magnitude")
    plan = compressor.plan(hybrid, keep_blocks=0.8)
    assert any(not block["attention"] for block in plan.blocks)  # linear attention has no units
    check_plan(plan, tmp_path)
    assert any(len(block["attention"]) == 0 for block in hybrid.blocks)
    check_scores(hybrid, tmp_path)


def test_the_plan_in_a_record(llama, quick, tmp_path):
    asked = [llama, tmp_path / "out", "--drop-blocks", 1, "--keep", 0.6, "--method", "magnitude"]
    assert compress(*asked, "--repair", "none", *quick) == 0
    plan = read_record(tmp_path / "out")["plan"]
    assert plan["about"]["dropped"] and plan["about"]["depth"]["folded"]
    PLAN.validate(plan)


GOOD = {"attention": [0, 2], "ffn": [*range(20)]}
SIZES = {"attention": 4, "ffn": 48}


def test_the_least_that_is_a_plan_is_applied(llama, tmp_path):
    """Of another tool: blocks alone."""
    (tmp_path / "plan.json").write_text(json.dumps({"blocks": [GOOD] * 3, "about": {}}))
    compressor.cut(llama, Plan.load(tmp_path / "plan.json"), tmp_path / "out")
    assert Checkpoint(tmp_path / "out").units == {"attention": 2, "ffn": 20}


def refused(plan: object, model: Path, file: Path) -> bool:
    """Whether the reader refuses a plan for a model of three blocks, as `cut` does before it reads."""
    file.write_text(json.dumps(plan))
    try:
        read = Plan.load(file)
        source = Checkpoint(model)
        read.check(narrower(without(read.seen(source), read.dropped), read.channels))
    except InputError:
        return True
    return False


def block(**groups) -> dict:
    return {"blocks": [GOOD, GOOD | groups, GOOD], "about": {}}


def about(blocks: int = 3, **said) -> dict:
    return {"blocks": [GOOD] * blocks, "about": said}


BAD = {
    "no object": [],
    "no blocks": {"about": {}},
    "no about": {"blocks": [GOOD] * 3},
    "null": about() | {"about": None},
    "blocks are null": about() | {"blocks": None},
    "a number for a block": about() | {"blocks": [GOOD, 3, GOOD]},
    "an object of blocks": about() | {"blocks": {"0": GOOD}},
    "without a block": about(0),
    "without a group": about() | {"blocks": [GOOD, {"ffn": [0]}, GOOD]},
    "a number for a list": block(ffn=3),
    "null for a list": block(attention=None),
    "twice the same": block(ffn=[1, 1, 2]),
    "below 0": block(ffn=[-1, 2]),
    "a fraction": block(ffn=[0.5, 2]),
    "true": block(ffn=[True, 2]),
    "text": block(attention=["0"]),
    "of another key": block(heads=3),
    "units of no block": about(units=[{}] * 3),
    "a number of units": about(units=3),
    "units in words": about(units=[SIZES | {"ffn": "48"}] * 3),
    "the first is dropped": about(2, dropped=[0]),
    "dropped twice": about(1, dropped=[1, 1]),
    "a name is dropped": about(2, dropped=["1"]),
    "a number of dropped": about(2, dropped=1),
    "channels below 0": about(hidden={"of": 32, "channels": [-1, 3]}),
    "channels twice": about(hidden={"of": 32, "channels": [3, 3]}),
    "a number of channels": about(hidden={"channels": 3}),
    "a list for the stream": about(hidden=[3]),
    "experts by number": about(scores={"experts": 3}),
    "a list of scores": about(scores=[3]),
    "a list of depth": about(depth=[3]),
}
NOT_SAID = {  # by a schema, which knows neither an order nor the model
    "in another order": block(ffn=[2, 1]),
    "1.0": block(ffn=[0, 1.0]),
    "beyond the model's": block(ffn=[0, 48]),
    "nothing": block(ffn=[]),
    "of two blocks": about(2),
    "of other units": about(units=[SIZES | {"ffn": 64}] * 3),
    "channels that do not ascend": about(hidden={"of": 32, "channels": [3, 1]}),
}
TAKEN = {
    "as little as can be": about(),
    "with units": about(units=[SIZES] * 3),
    "nulls": about(**dict.fromkeys(("units", "dropped", "hidden", "depth", "scores"))),
    "keys of another tool": about(made_by={"tool": 1}) | {"version": 3},
    "another group": block(router=[]),
    "one that is dropped": about(2, dropped=[2]),
    "channels": about(hidden={"of": 32, "channels": [*range(0, 32, 2)]}),
}


@pytest.mark.parametrize("plan", BAD.values(), ids=BAD)
def test_what_the_reader_refuses_the_schema_does(llama, tmp_path, plan):
    assert refused(plan, llama, tmp_path / "plan.json") and not PLAN.is_valid(plan)


@pytest.mark.parametrize("plan", NOT_SAID.values(), ids=NOT_SAID)
def test_what_only_the_reader_knows(llama, tmp_path, plan):
    assert refused(plan, llama, tmp_path / "plan.json") and PLAN.is_valid(plan)


@pytest.mark.parametrize("plan", TAKEN.values(), ids=TAKEN)
def test_what_both_take(llama, tmp_path, plan):
    assert not refused(plan, llama, tmp_path / "plan.json") and PLAN.is_valid(plan)


def test_they_name_all_that_is_read():
    assert {*ABOUT} <= {*PLAN.schema["$defs"]["about"]["properties"]}
    assert {*SHAPE["about"]} <= {*SCORES.schema["properties"]["about"]["properties"]}
    assert {*SHAPE["measured"]["about"]} <= {
        *SCORES.schema["properties"]["measured"]["properties"]["about"]["properties"]
    }


def named(schema: dict) -> set[str]:
    """Every property of a schema, at any depth."""
    found = {*schema.get("properties", ())}
    parts = [
        *schema.values(),
        *schema.get("properties", {}).values(),
        *schema.get("$defs", {}).values(),
    ]
    return found.union(*(named(part) for part in parts if isinstance(part, dict)))


@pytest.mark.parametrize("schema", [PLAN, SCORES], ids=["plan", "scores"])
def test_the_page_names_every_property(schema):
    page = Path(__file__).parents[2] / "docs/formats.md"
    told = {*re.findall(r"`(\w+)`", page.read_text())}
    assert len(named(schema.schema)) > 20 and named(schema.schema) <= told


TOLD = {"about": {}, "parts": [], "rates": []}
CUTS = {"attention": [1, 4], "ffn": [24, 48]}


def written(file: Path, told: object, **tensors) -> Path:
    """A file of scores of the llama, with these tensors as well."""
    each = {f"{b}.{g}": torch.rand(n) for b in range(3) for g, n in SIZES.items()}
    save_file(each | tensors, file, metadata={"scores": json.dumps(told)})
    return file


@pytest.mark.parametrize(
    "told",
    [
        [],
        {},
        TOLD | {"about": None},
        TOLD | {"about": []},
        TOLD | {"about": {"source": 3}},
        TOLD | {"about": {"experts": 3}},
        TOLD | {"parts": ["coarse"], "rates": None},
        TOLD | {"parts": {"coarse": 1}},
        TOLD | {"measured": 3},
        TOLD | {"measured": {"names": ["errors"]}},
        TOLD | {"measured": {"about": CUTS | {"cuts": [3]}, "names": ["errors"]}},
        TOLD | {"measured": {"about": CUTS | {"ffn": 3}, "names": ["errors"]}},
    ],
)
def test_scores_that_both_refuse(tmp_path, told):
    file = written(tmp_path / "s", told)
    with pytest.raises(InputError, match="is not a file of scores"):
        Scores.load(file)
    assert not fits_scores(file)


def test_tensors_that_both_refuse(tmp_path):
    save_file({"weight": torch.rand(3)}, tmp_path / "s", metadata={"scores": json.dumps(TOLD)})
    with pytest.raises(InputError, match="is not a file of scores"):
        Scores.load(tmp_path / "s")
    assert not fits_scores(tmp_path / "s")
    save_file({"0.ffn": torch.rand(3), "0.attention": torch.rand(3)}, tmp_path / "s")
    with pytest.raises(InputError, match="is not a file of scores"):
        Scores.load(tmp_path / "s")
    assert not fits_scores(tmp_path / "s")


def test_the_least_that_is_a_file_of_scores(llama, tmp_path, capsys):
    """Of another tool: the reader has to be told what was scored."""
    file, out = written(tmp_path / "s", TOLD), ["--out", tmp_path / "p", "--keep", 0.8]
    assert fits_scores(file)
    assert stage("plan", file, *out) == 2
    assert "do not say what was scored" in said(capsys)
    assert stage("plan", file, "--source", llama, *out) == 0
    PLAN.validate(json.loads((tmp_path / "p").read_text()))


def test_measured_cuts_without_their_widths(llama, tmp_path, capsys):
    measured = {"about": {}, "names": []}
    file = written(tmp_path / "s", TOLD | {"measured": measured})
    asked = ["--source", llama, "--out", tmp_path / "p", "--keep", 0.8, "--allocate", "exact"]
    assert stage("plan", file, *asked) == 2
    assert "What is said of the measured cuts" in said(capsys) and not fits_scores(file)
