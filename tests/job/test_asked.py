"""Options that no source could make right are refused at once, each in a sentence of its own."""

import subprocess
import sys
from dataclasses import fields

import pytest

from compressor.config.quantization import Quantization
from compressor.config.recovery import Recovery
from compressor.config.sparse import Weights
from compressor.errors import InputError
from compressor.job.asked import (
    LEAST,
    SEEDS,
    check_asked,
    check_counts,
    check_cut,
    check_method_asked,
    check_nothing_cut,
    check_parents,
    check_protect,
    check_source,
    check_targets,
)
from compressor.job.settings import Settings, target_name
from compressor.planning.target import Target

KEEP = (Target("keep", 0.7),)
PACKED = Quantization(scheme="w4a16")
ZEROS = {
    "targets": (),
    "method": "wanda",
    "weights": Weights(granularity="weight", sparsity=0.5),
}


@pytest.fixture
def asked(tmp_path):
    """The function that makes settings of a cut: right ones, but for what it is given."""
    (tmp_path / "source").mkdir()
    right = {"source": tmp_path / "source", "dest": tmp_path / "out", "targets": KEEP}
    return lambda **given: Settings(**right | given)


def refusal(check, *given) -> str:
    with pytest.raises(InputError) as caught:
        check(*given)
    return str(caught.value)


# -- the real commands, in processes of their own ---------------------------------------------------

ENTRIES = {
    "compress": "from compressor.cli.compress import main; main()",
    "python -m compressor": "import runpy; runpy.run_module('compressor', run_name='__main__')",
}
WITHOUT_TORCH = """
import sys
try:
    {}
finally:
    assert "torch" not in sys.modules, "torch is imported"
"""


def started(entry: str, *arguments) -> subprocess.CompletedProcess:
    """A command that ends with code 1 where torch is imported, whatever its own would be."""
    stage = ["compress"] if entry.startswith("python") else []
    command = [sys.executable, "-c", WITHOUT_TORCH.format(ENTRIES[entry]), *stage]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_share_of_80_is_refused_before_torch_is_imported(tmp_path, entry):
    (tmp_path / "x").mkdir()
    process = started(entry, tmp_path / "x", tmp_path / "y", "--keep", 80)
    assert process.stderr == "compress: --keep must lie between 0 and 1, not 80.\n"
    assert process.returncode == InputError.exit_code == 2
    assert process.stdout == "" and [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "taylor", "--statistics", "pruned"], "taylor runs backward"),
        (["--quantize-group", 0], "--quantize-group must be at least 2, not 0"),
        (["--recover", "lora", "--lora-rank", 0], "--lora-rank must be at least 1, not 0"),
        (["--granularity", "weight"], "Say how many weights go"),
        (["--work-dir", "x"], "--work-dir x lies in the source"),
        (
            ["--max-memory", "-5GB"],
            "--max-memory is a number of bytes from 1 up, such as 8GB, not -5,0",
        ),
        (["--max-memory", "inf"], "such as 8GB, not inf."),
        (["--max-perplexity-ratio", -1], "is a number above 0, or off, not -1."),
    ],
)
def test_other_refusals_import_no_torch_either(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    process = started("compress", "x", "y", "--keep", 0.7, *options)
    assert message in process.stderr and process.returncode == 2
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


# -- what passes, and where one refusal comes before another ----------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"layout": "all", "protect": (0, -1)},
        {"allocate": "global", "layout": "per-layer"},
        {"allocate": "exact"},
        {"allocate": "besa", "weights": Weights(sampling="categorical")},
        {"statistics": "pruned"},
        {"recovery": Recovery(method="lora", rank=4)},
        {"evaluation": "stdlib", "evaluation_range": "0:5"},
        ZEROS,
    ],
)
def test_what_is_right_passes(asked, given):
    check_asked(asked(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "magic", "layout": "spiral"}, "The method 'magic' is not one of"),
        ({"length": 1, "method": "magic"}, "--length must be at least 2"),
        (ZEROS | {"tp": 0, "layout": "padded"}, "--tp must be at least 1"),
        (ZEROS | {"recovery": Recovery(rank=4)}, "--lora-rank goes with a --recover"),
        (ZEROS | {"targets": KEEP, "layout": "padded"}, "makes zeros and no tensor smaller"),
        ({"recovery": Recovery("lora", batch=3), "protect": (0,)}, "--recover-batch 3 cannot be"),
    ],
)
def test_of_two_mistakes_one_is_named(asked, given, message):
    assert message in refusal(check_asked, asked(**given))


def test_a_source_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    for name in ("nowhere", "file", "file/below"):
        settings = Settings(tmp_path / name, tmp_path / "out", KEEP)
        message = f"There is no folder '{tmp_path / name}'; give a checkpoint folder."
        assert refusal(check_source, settings) == refusal(check_asked, settings) == message


# -- counts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEAST)
def test_counts_are_refused_below_their_least(asked, name):
    option, least = f"--{name.replace('_', '-')}", LEAST[name]
    for given in (least - 1, -7):
        message = f"{option} must be at least {least}, not {given}."
        assert refusal(check_counts, asked(**{name: given})) == message
    check_counts(asked(**{name: least}))


def test_a_seed_has_32_bits(asked):
    check_counts(asked(seed=2**32 - 1))
    message = "--seed must be below 4,294,967,296, not 4,294,967,296."
    assert refusal(check_counts, asked(seed=2**32)) == message
    assert refusal(check_counts, asked(seed=10**10)).endswith("not 10,000,000,000.")
    assert SEEDS == 2**32


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (-5e9, "-5,000,000,000"),
        (0, "0"),
        (0.5, "0.5"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_memory_is_a_number_of_bytes(asked, given, shown):
    message = f"--max-memory is a number of bytes from 1 up, such as 8GB, not {shown}."
    assert refusal(check_asked, asked(max_memory=given)) == message


@pytest.mark.parametrize("given", [1, 1000.0, 8e9])
def test_little_memory_is_enough_since_files_take_the_rest(asked, given):
    check_asked(asked(max_memory=given))


@pytest.mark.parametrize(("given", "shown"), [(-1.0, "-1"), (0.0, "0"), (float("nan"), "nan")])
def test_a_ratio_of_perplexities_is_above_0(asked, given, shown):
    message = f"--max-perplexity-ratio is a number above 0, or off, not {shown}."
    assert refusal(check_asked, asked(max_perplexity_ratio=given)) == message
    for right in (None, 0.5, 3):
        check_asked(asked(max_perplexity_ratio=right))


# -- targets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["keep", "keep-blocks"])
@pytest.mark.parametrize(
    ("value", "shown"),
    [(80, "80"), (1.5, "1.5"), (-0.5, "-0.5"), (float("nan"), "nan"), (float("inf"), "inf")],
)
def test_shares_lie_between_0_and_1(asked, kind, value, shown):
    message = f"--{kind} must lie between 0 and 1, not {shown}."
    for targets in ([Target(kind, value)], [Target(kind, 0.5), Target(kind, value)]):
        assert refusal(check_targets, asked(targets=targets)) == message


@pytest.mark.parametrize("value", [1e-6, 0.999999])
def test_every_share_between_them_may_be_asked_for(asked, value):
    check_targets(asked(targets=[Target("keep", value), Target("keep-blocks", value)]))


def test_sizes_are_not_shares(asked):
    check_targets(asked(targets=[Target("params", 9e9), Target("bytes", 9e9)]))


@pytest.mark.parametrize(
    "target", [Target("keep", 0.7), Target("keep-blocks", 0.7), Target("params", 7e9)]
)
def test_no_target_is_given_twice(asked, target):
    others = [Target("keep", 0.8), Target("keep-blocks", 0.8), Target("params", 8e9)]
    check_targets(asked(targets=[target, *others]))
    told = refusal(check_targets, asked(targets=[*others, target, target]))
    assert told == f"{target.flag} is given twice; leave one of them out."


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (Target("keep", 0.7), "keep-0.7"),
        (Target("keep", 0.12345678), "keep-0.123457"),
        (Target("params", 7e9), "params-7e+09"),
        (Target("params", 123456), "params-123456"),
        (Target("params", 1234567.0), "params-1234567"),
        (Target("bytes", 12345678901), "bytes-12345678901"),
        (Target("params", float("nan")), "params-nan"),
        (Target("params", float("inf")), "params-inf"),
    ],
)
def test_results_are_named_by_their_targets(target, name):
    assert target_name(target) == name


def test_sizes_that_differ_by_one_are_two_targets(asked):
    check_targets(asked(targets=[Target("params", 1234567), Target("params", 1234568)]))


def test_what_is_quantised_has_fewer_bytes_than_a_target_counts(asked):
    for kind, value in (("keep", 0.7), ("keep-blocks", 0.7), ("params", 7e9)):
        check_targets(asked(targets=[Target(kind, value)], quantization=PACKED))
    told = refusal(check_targets, asked(targets=[Target("bytes", 7e9)], quantization=PACKED))
    assert told.endswith("give --keep, --keep-blocks or --target-params.")


# -- options of a cut that do not go together -------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *(
            (
                {"method": method, "statistics": "pruned"},
                f"needs a forward pass; {method} runs backward. Leave --statistics out, or choose",
            )
            for method in ("hywia", "taylor", "kfac", "mask-fisher")
        ),
        ({"statistics": "pruned", "allocate": "exact"}, "--allocate exact finds the widths when"),
        ({"weights": Weights(sampling="categorical")}, "--besa-sampling is for what learns; add"),
        (
            {"weights": Weights(sampling="none"), "allocate": "exact"},
            "add --allocate besa, or leave it out.",
        ),
        ({"kv_cost": "magic"}, "--kv-cost is score or measured, not 'magic'."),
        ({"statistics": ""}, "--statistics is dense or pruned, not ''."),
        ({"refine_epochs": 2, "repair": "none"}, "--repair refine, not none; leave it out."),
        ({"allocate": "global"}, "--allocate global gives every block its own widths"),
        ({"allocate": "global"}, "or leave --allocate out."),
        ({"protect": (0,)}, "or leave --protect out."),
        ({"quantization": PACKED, "layout": "all"}, "--layout all is not for the kernels"),
        ({"quantization": PACKED, "layout": "per-layer"}, "--layout per-layer is not for the"),
    ],
)
def test_what_does_not_go_together(asked, given, message):
    assert message in refusal(check_cut, asked(**given))


def test_blocks_are_protected_where_widths_may_differ():
    for protect, layout in (
        ((), "uniform"),
        ((0,), "per-layer"),
        ((0, -1), "padded"),
        ((3,), "all"),
    ):
        check_protect(protect, layout)
    told = refusal(check_protect, (0,), "uniform")
    assert "--layout per-layer" in told and "padded" in told
    assert told.endswith("or leave --protect out.")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "besa", "mode": "bip"}, "The method besa has no mode 'bip'; it has bip-gram."),
        ({"coarse": "gate"}, "--coarse does not apply to the method llm-bip, but to hywia."),
        ({"dtype": "FLOAT32"}, "--dtype is auto, float32, bfloat16, float16, not 'FLOAT32'."),
    ],
)
def test_a_method_says_what_it_has(asked, given, message):
    assert refusal(check_method_asked, asked(**given)) == message


# -- options without the one that they belong to ----------------------------------------------------

GROUPS = {
    "--recover": ("recovery", Recovery, "lora"),
    "--quantize": ("quantization", Quantization, "w4a16"),
}
CHILDREN = [
    pytest.param(parent, each.name, id=each.metadata["flag"])
    for parent, (_, group, _) in GROUPS.items()
    for each in fields(group)
    if each.metadata["flag"] != parent
]


@pytest.mark.parametrize(("parent", "name"), CHILDREN)
def test_an_option_goes_with_its_parent(request, asked, parent, name):
    option, group, wanted = GROUPS[parent]
    flag = request.node.callspec.id
    (of_parent,) = (each.name for each in fields(group) if each.metadata["flag"] == parent)
    changed = {name: "changed"}
    check_parents(asked(**{option: group(**changed | {of_parent: wanted})}))
    assert refusal(check_parents, asked(**{option: group(**changed)})) == (
        f"{flag} goes with a {parent} that is not none; add that, or leave {flag} out."
    )


def test_a_parent_is_not_that_of_the_other_group(asked):
    settings = asked(quantization=PACKED, recovery=Recovery(steps=7))
    assert refusal(check_parents, settings).startswith("--recover-steps goes with a --recover")
    settings = asked(quantization=Quantization(clip="none"), recovery=Recovery("distill"))
    assert refusal(check_parents, settings).startswith("--quantize-clip goes with a --quantize")


@pytest.mark.parametrize("evaluation", [None, "none"])
def test_a_range_is_of_an_evaluation(asked, evaluation):
    told = refusal(check_parents, asked(evaluation=evaluation, evaluation_range="0:5"))
    assert told == "--evaluation-range goes with --evaluation; add that, or leave it out."
    check_parents(asked(evaluation=evaluation))


# -- nothing is cut ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"mode": "bip"}, "--mode"),
        ({"coarse": "gate"}, "--coarse"),
        ({"container": "llama"}, "--container"),
        ({"statistics": "pruned"}, "--statistics"),
        ({"kv_cost": "measured"}, "--kv-cost"),
        ({"refine_epochs": 2}, "--refine-epochs"),
        ({"protect": (0,)}, "--protect"),
        ({"tp": 2}, "--tp"),
        ({"recovery": Recovery("lora")}, "--recover"),
        ({"method": "besa", "tp": 2}, "--method"),
    ],
)
def test_options_of_cuts_are_refused_where_nothing_is_cut(asked, given, option):
    settings = asked(targets=(), quantization=PACKED, **given)
    assert refusal(check_nothing_cut, settings) == (
        f"{option} is for cuts, and nothing is cut; leave it out, or give --keep below 1."
    )


def test_what_is_quantised_whole_takes_the_other_options(asked):
    texts = {"calibration": "a.txt", "samples": 3, "length": 64, "evaluation": "b.txt"}
    places = {"seed": 7, "device": "cpu", "dtype": "float32", "max_memory": 10**9}
    check_nothing_cut(asked(targets=(), quantization=PACKED, **texts, **places))
