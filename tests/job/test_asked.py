"""Options that no source could make right are refused at once, each in a sentence of its own."""

import subprocess
import sys
from dataclasses import fields

import jobs
import pytest

from compressor.config.quantization import QuantConfig
from compressor.config.recovery import RecoveryConfig
from compressor.config.sparse import SparseConfig
from compressor.config.target import Target, target_name
from compressor.errors import InputError
from compressor.job.asked import (
    SEEDS,
    check_asked,
    check_cut,
    check_nothing_cut,
    check_parents,
    check_protect,
    check_source,
    check_targets,
)
from compressor.job.resolve import resolve

KEEP = (Target("keep", 0.7),)
PACKED = QuantConfig(scheme="w4a16")
ZEROS = {"targets": (), "sparse": SparseConfig(sparsity=0.5, method="wanda")}


@pytest.fixture
def asked(tmp_path):
    """The function that makes the config of a cut: a right one, but for what it is given."""
    (tmp_path / "source").mkdir()
    right = {"source": tmp_path / "source", "dest": tmp_path / "out", "targets": KEEP}
    return lambda **given: jobs.asked(**right | given)


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
    name = "compressor" if entry.startswith("python") else "compress"
    assert process.stderr == f"{name}: --keep must lie between 0 and 1, not 80.\n"
    assert process.returncode == InputError.exit_code == 2
    assert process.stdout == "" and [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "hywia:magic"], "The method hywia has no mode 'magic'"),
        (["--quantize", "w4a16:0"], "quantize_group must be at least 2, not 0"),
        (["--recover", "lora:0"], "recover_steps must be at least 1, not 0"),
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
        {"allocate": "besa", "besa_sampling": "categorical"},
        {"statistics": "pruned"},
        {"recovery": RecoveryConfig(method="lora", rank=4)},
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
        ({"tp": 0, "layout": "spiral"}, "--tp must be at least 1"),
        ({"recovery": RecoveryConfig(rank=4), "layout": "spiral"}, "lora_rank needs --recover"),
        (
            {"recovery": RecoveryConfig("lora", batch=3), "protect": (0,)},
            "recover_batch 3 cannot be",
        ),
    ],
)
def test_of_two_mistakes_one_is_named(asked, given, message):
    assert message in refusal(check_asked, asked(**given))


def test_a_source_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    for name in ("nowhere", "file", "file/below"):
        config = jobs.asked(tmp_path / name, tmp_path / "out", KEEP)
        wanted = "give a checkpoint folder, or ORG/NAME of the hub."
        message = f"There is no folder '{tmp_path / name}'; {wanted}"
        assert refusal(check_source, tmp_path / name) == refusal(check_asked, config) == message


# -- counts -----------------------------------------------------------------------------------------


LEAST = {"samples": 1, "length": 2, "align": 1, "tp": 1, "refine_epochs": 1, "seed": 0}


@pytest.mark.parametrize("name", LEAST)
def test_counts_are_refused_below_their_least(asked, name):
    flag = name if name == "refine_epochs" else f"--{name}"  # that is for Python alone
    least = LEAST[name]
    for given in (least - 1, -7):
        message = f"{flag} must be at least {least}, not {given}."
        assert refusal(check_asked, asked(**{name: given})) == message
    check_asked(asked(**{name: least}))


def test_a_seed_has_32_bits(asked):
    check_asked(asked(seed=2**32 - 1))
    message = "--seed must be below 4,294,967,296, not 4,294,967,296."
    assert refusal(check_asked, asked(seed=2**32)) == message
    assert refusal(check_asked, asked(seed=10**10)).endswith("not 10,000,000,000.")
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
        assert refusal(check_targets, asked(targets=targets).plan) == message


@pytest.mark.parametrize("value", [1e-6, 0.999999])
def test_every_share_between_them_may_be_asked_for(asked, value):
    check_targets(asked(targets=[Target("keep", value), Target("keep-blocks", value)]).plan)


def test_sizes_are_not_shares(asked):
    check_targets(asked(targets=[Target("params", 9e9), Target("bytes", 9e9)]).plan)


@pytest.mark.parametrize(
    "target", [Target("keep", 0.7), Target("keep-blocks", 0.7), Target("params", 7e9)]
)
def test_no_target_is_given_twice(asked, target):
    others = [Target("keep", 0.8), Target("keep-blocks", 0.8), Target("params", 8e9)]
    check_targets(asked(targets=[target, *others]).plan)
    told = refusal(check_targets, asked(targets=[*others, target, target]).plan)
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
    check_targets(asked(targets=[Target("params", 1234567), Target("params", 1234568)]).plan)


def test_what_is_quantised_has_fewer_bytes_than_a_target_counts(asked):
    for kind, value in (("keep", 0.7), ("keep-blocks", 0.7), ("params", 7e9)):
        check_targets(asked(targets=[Target(kind, value)]).plan, quantized=True)
    told = refusal(check_targets, asked(targets=[Target("bytes", 7e9)]).plan, True)
    assert told.endswith("give --keep, --keep-blocks or a number of parameters.")


# -- options of a cut that do not go together -------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *(
            (
                {"method": method, "statistics": "pruned"},
                f"need a forward pass; {method} runs backward. Leave statistics out, or choose",
            )
            for method in ("hywia", "taylor", "kfac", "mask-fisher")
        ),
        ({"statistics": "pruned", "allocate": "exact"}, "--allocate exact finds the widths when"),
        ({"besa_sampling": "categorical"}, "besa_sampling is for what learns; add"),
        (
            {"besa_sampling": "none", "allocate": "exact"},
            "add --allocate besa, or leave it out.",
        ),
        ({"kv_cost": "magic"}, "--kv-cost is score or measured, not 'magic'."),
        ({"statistics": ""}, "statistics must be dense or pruned, not ''."),
        ({"refine_epochs": 2, "repair": "none"}, "--repair refine, not none; leave them out."),
        ({"allocate": "global"}, "--allocate global gives every block its own widths"),
        ({"allocate": "global"}, "or leave --allocate out."),
        ({"protect": (0,)}, "or leave --protect out."),
        ({"quantization": PACKED, "layout": "all"}, "--layout all is not for the kernels"),
        ({"quantization": PACKED, "layout": "per-layer"}, "--layout per-layer is not for the"),
    ],
)
def test_what_does_not_go_together(asked, given, message):
    assert message in refusal(check_cut, resolve(asked(**given)))


def test_blocks_are_protected_where_widths_may_differ():
    for protect, layout in (
        ((), "uniform"),
        ((0,), "per-layer"),
        ((0, -1), "padded"),
        ((3,), "all"),
    ):
        check_protect(protect, layout)
    told = refusal(check_protect, (0,), "uniform")
    assert "--layout nas" in told and "per-layer" in told and "padded" in told
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
    assert refusal(check_asked, asked(**given)) == message


# -- options without the one that they belong to ----------------------------------------------------

GROUPS = {
    "--recover": ("recovery", RecoveryConfig, "lora"),
    "--quantize": ("quantization", QuantConfig, "w4a16"),
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
    ways = {"--recover": "lora or distill", "--quantize": "w4a16"}[parent]
    told = refusal(check_parents, asked(**{option: group(**changed)}))
    assert told == f"{flag} needs {parent} {ways}."


def test_a_parent_is_not_that_of_the_other_group(asked):
    config = asked(quantization=PACKED, recovery=RecoveryConfig(steps=7))
    assert refusal(check_parents, config).startswith("recover_steps needs --recover")
    config = asked(quantization=QuantConfig(clip="none"), recovery=RecoveryConfig("distill"))
    assert refusal(check_parents, config).startswith("quantize_clip needs --quantize")


@pytest.mark.parametrize("evaluation", [None, "none"])
def test_a_range_is_of_an_evaluation(asked, evaluation):
    told = refusal(check_parents, asked(evaluation=evaluation, evaluation_range="0:5"))
    assert told == "evaluation_range needs --evaluation."
    check_parents(asked(evaluation=evaluation))


# -- nothing is cut ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"mode": "bip"}, "mode"),
        ({"coarse": "gate"}, "coarse"),
        ({"container": "llama"}, "--container"),
        ({"statistics": "pruned"}, "statistics"),
        ({"kv_cost": "measured"}, "--kv-cost"),
        ({"refine_epochs": 2}, "refine_epochs"),
        ({"protect": (0,)}, "--protect"),
        ({"tp": 2}, "--tp"),
        ({"recovery": RecoveryConfig("lora")}, "--recover"),
        ({"method": "besa", "tp": 2}, "--method"),
    ],
)
def test_options_of_cuts_are_refused_where_nothing_is_cut(asked, given, option):
    config = asked(targets=(), quantization=PACKED, **given)
    assert refusal(check_nothing_cut, config) == (
        f"{option} is for cuts, and nothing is cut; leave it out, or give --keep below 1."
    )


def test_what_is_quantised_whole_takes_the_other_options(asked):
    texts = {"calibration": "a.txt", "samples": 3, "length": 64, "evaluation": "b.txt"}
    places = {"seed": 7, "device": "cpu", "dtype": "float32", "max_memory": 10**9}
    check_nothing_cut(asked(targets=(), quantization=PACKED, **texts, **places))
