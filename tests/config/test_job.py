"""The config of a job: options by their names, what one option says of two, and details from a file."""

from pathlib import Path

import pytest

from compressor.config.job import JobConfig, job_config, sparsify_config
from compressor.config.recovery import read_details
from compressor.config.repair import RepairConfig
from compressor.config.target import Target
from compressor.errors import InputError


def test_nothing_given_is_every_default():
    assert job_config("a", "b") == JobConfig(Path("a"), Path("b"))


def test_options_go_to_their_stages():
    found = job_config(
        "a", "b", keep=0.7, samples=8, repair="ridge", protect="0,-1", max_memory="8GB"
    )
    assert found.plan.targets == (Target("keep", 0.7),)
    assert found.text.samples == 8 and found.repair == RepairConfig("ridge")
    assert found.plan.protect == (0, -1) and found.runtime.max_memory == 8e9


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"calibration": "a.json[0:9]"}, {"calibration": "a.json", "calibration_range": "0:9"}),
        ({"calibration": "a.json[5:]"}, {"calibration": "a.json", "calibration_range": "5:"}),
        ({"evaluation": "b[-3:]"}, {"evaluation": "b", "evaluation_range": "-3:"}),
        ({"calibration": ["a", "b"]}, {"calibration": "a", "calibration_also": "b"}),
        (
            {"calibration": ["a[1:2]", "b[3:4]"]},
            {
                **{"calibration": "a", "calibration_range": "1:2"},
                **{"calibration_also": "b", "calibration_also_range": "3:4"},
            },
        ),
        ({"method": "hywia:fixed:0.5"}, {"method": "hywia", "mode": "fixed:0.5"}),
        ({"repair": "refine:8"}, {"repair": "refine", "refine_epochs": 8}),
        ({"quantize": "w4a16:64"}, {"quantize": "w4a16", "quantize_group": 64}),
        ({"fast": True}, {"repair": "ridge", "calibration_tokens": 16_384}),
        ({"fast": True, "repair": "none"}, {"repair": "none", "calibration_tokens": 16_384}),
        ({"fast": False}, {}),
        ({"recover": "lora:500"}, {"recover": "lora", "recover_steps": 500}),
    ],
)
def test_one_option_says_two_things(given, same):
    assert job_config("a", "b", **given) == job_config("a", "b", **same)


def test_a_file_of_that_name_is_the_text(tmp_path):
    file = tmp_path / "a[1:2]"
    file.touch()
    assert job_config("a", "b", calibration=str(file)).text.calibration == str(file)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kep": 0.7}, "There is no option 'kep'; the options are keep, keep_blocks, target"),
        ({"sparsity": 0.5}, "There is no option 'sparsity'"),
        ({"repair": "refine:many"}, "--repair refine:many: 'many' is not a whole number"),
        ({"calibration": ["a", "b", "c"]}, "--calibration takes one text or two, not 3"),
        ({"protect": "first"}, "not 'first'"),
        ({"target": "much"}, "'much' is not an amount"),
    ],
)
def test_what_cannot_be_is_named(given, message):
    with pytest.raises(InputError, match=message.replace("'", ".")):
        job_config("a", "b", **given)


@pytest.mark.parametrize("option", [{"keep": 0.7}, {"repair": "ridge"}, {"layout": "padded"}])
def test_zeros_take_no_options_of_cuts(option):
    with pytest.raises(InputError, match="There is no option"):
        sparsify_config("a", "b", sparsity=0.5, **option)


# -- details of a training ---------------------------------------------------------------------------


def test_details_are_read_from_a_file(tmp_path):
    file = tmp_path / "recovery.yaml"
    file.write_text("learning_rate: 1e-4\nrank: 16\ndata: own.jsonl\n")
    found = read_details(file)
    assert found == {"learning_rate": 1e-4, "lora_rank": 16, "recover_data": "own.jsonl"}
    assert job_config("a", "b", recover="lora", **found).recovery.rank == 16


def test_no_details_are_none(tmp_path):
    file = tmp_path / "recovery.yaml"
    file.write_text("# all as it is\n")
    assert read_details(file) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank: many", "rank in --recover-config .* is 'many', and must be a number"),
        ("rank: true", "rank in --recover-config .* is True"),
        ("rank: 1.5", "rank in --recover-config .* is 1.5"),
        ("steps: 5", r"but has \['steps'\]"),
        ("ranks: 5", r"but has \['ranks'\]"),
        ("- rank", "but is a list"),
        ("rank: [", "cannot be read"),
    ],
)
def test_details_that_cannot_be_are_named(tmp_path, text, message):
    file = tmp_path / "recovery.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_details(file)


def test_a_file_of_details_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_details(tmp_path / "none.yaml")
