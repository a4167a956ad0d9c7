"""Sweeps as they are written, and rules that results are picked by."""

import pytest

from compressor.config.picking import parse_rule
from compressor.config.sweep import MOST, read_sweep
from compressor.errors import InputError


def read(tmp_path, text: str):
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    return read_sweep(file)


def test_every_value_is_tried_with_every_other(tmp_path):
    sweep = read(
        tmp_path,
        "source: model\nlength: 64\nruns:\n"
        "  - {method: [llm-bip, hywia], keep: [0.9, 0.8]}\n"
        "  - {keep-blocks: 0.7, layout: nas, learning_rate: 1e-4, recover: lora:5}\n",
    )
    assert [*sweep.wanted] == [
        "llm-bip-keep-0.9",
        "llm-bip-keep-0.8",
        "hywia-keep-0.9",
        "hywia-keep-0.8",
        "nas-learning-rate-0.0001-recover-lora-5-keep-blocks-0.7",
    ]
    assert sweep.wanted["hywia-keep-0.8"] == {"length": 64, "method": "hywia", "keep": 0.8}
    assert [*sweep.wanted.values()][-1]["learning_rate"] == 1e-4


def test_a_run_has_its_own_and_the_same_twice_is_one(tmp_path):
    text = "source: model\nkeep: [0.9, 0.8]\nseed: 1\nruns: [{}, {seed: 2, keep: 0.9}, {seed: 1}]\n"
    assert [*read(tmp_path, text).wanted] == [
        "seed-1-keep-0.9",
        "seed-1-keep-0.8",
        "seed-2-keep-0.9",
    ]


def test_without_runs_there_is_one(tmp_path):
    text = "source: model\nkeep: 0.9\nmax-perplexity-ratio: off\ncalibration: [[a.txt, own]]\n"
    (options,) = read(tmp_path, text).wanted.values()
    assert options["max_perplexity_ratio"] == "off" and options["calibration"] == ["a.txt", "own"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no sweep: it is to have a line `source: FOLDER`"),
        ("- a", "is no sweep"),
        ("source: 5\nkeep: 0.9", "is no sweep"),
        ("source: m\nruns: 5", "`runs` in .* is to be a list"),
        ("source: m\nruns: []", "`runs` in .* is to be a list"),
        ("source: m\nruns: &a [*a]", "`runs` in .* is to be a list"),
        ("source: m\nkep: 0.9", "There is no option 'kep' in a sweep"),
        ("source: m\nkeep: 0.9\nresume: true", "There is no option 'resume'"),
        ("source: m\nkeep: 0.9\n5: 6", "There is no option 'int'"),
        ("source: m\nkeep: []", "keep in .* is an empty list"),
        ("source: m\nkeep: [[0.9, 0.8]]", "keep in .* has a value that is a list"),
        ("source: m\nkeep: &a [*a]", "keep in .* has a value that is a list"),
        ("source: m\nkeep: 2020-01-01", "a value that is a date"),
        ("source: m\nkeep: many", "keep many: A share to keep is a number"),
        ("source: m\nkeep: 0.9\nseed: x", "seed in .* is 'x', and must be a number"),
        ("source: m\nkeep: 0.9\nfast: often", "fast in .* must be true or false, not 'often'"),
        ("source: m\nkeep: 0.9\nkeep_blocks: 0.8", "that is more than one result"),
        ("source: m\nkeep: 0.9\nlayout: all", "that is more than one result"),
        ("source: m\nkeep: 0.9\ncalibration: [a, b]", "would be measured on different ones"),
        ("source: m\nkeep: 0.9\nevaluation: c\nlength: [8, 9]", "would be measured on different"),
        (f"source: m\nkeep: [{', '.join(['0.9'] * 40)}]\nseed: [{', '.join('1' * 40)}]", f"{MOST}"),
        ("source: m\nkeep: [", "sweep.yaml cannot be read"),
        ("source: m\nkeep: " + "[" * 200, "it is nested too deeply"),
        ("#" * 9000, "at most 8,192"),
    ],
)
def test_what_is_no_sweep_is_said(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "holds", "does_not"),
    [
        ("perplexity <= 1.1x", 1.1, 1.2),
        ("perplexity<12.5", 12.4, 12.5),
        ("kl <= 5e-2", 0.05, 0.06),
        ("agreement >= 90%", 0.9, 0.89),
        ("agreement > 0.9", 0.91, 0.9),
    ],
)
def test_rules(text, holds, does_not):
    rule = parse_rule(text)
    assert rule.holds(holds) and not rule.holds(does_not)
    assert rule.relative == text.endswith("x")


@pytest.mark.parametrize(
    "text", ["", "kl", "perplexity >= 2", "speed <= 2", "kl <= 2x", "agreement >= 5x", "kl <= -1"]
)
def test_what_is_no_rule_is_said(text):
    with pytest.raises(InputError, match="--pick"):
        parse_rule(text)
