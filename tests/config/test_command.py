"""The command that repeats a job: parsed again, it is the same job."""

import shlex

import pytest
from jobs import stage

from compressor.cli import compress, sparsify
from compressor.config.command import OF_STAGES, command_of, settings_of
from compressor.config.job import GROUPS, job_config, sparsify_config
from compressor.config.options import name_of, options_of

JOBS = {
    "a share": {"keep": [0.7]},
    "several": {"keep_blocks": [0.9, 0.8], "fast": True, "seed": 3},
    "a bound in bytes": {"target": "11GB", "align": 64},
    "a bound in parameters": {"target": "5.4B", "layout": "nas", "allocate": "measured"},
    "passes": {"keep": [0.9], "repair": "refine:8", "recover": "lora:500", "quantize": "w4a16:64"},
    "no repair": {"keep": [0.5], "repair": "none", "method": "hywia:fixed:0.5", "verify": False},
    "texts": {"keep": [0.9], "calibration": ["a.jsonl[0:4]", "own"], "evaluation": "none"},
    "no limit": {"keep": [0.9], "max_perplexity_ratio": "off", "budget": "flops"},
    "depth": {"keep": [0.8], "drop_blocks": "auto"},
    "hidden": {"keep_hidden": 0.9, "length": 128, "samples": 4},
}


@pytest.fixture
def parsed(monkeypatch):
    """What config a command line is parsed as."""

    def parse(words: list[str]):
        found = []
        monkeypatch.setattr(compress, "run_and_show", lambda config, as_json: found.append(config))
        monkeypatch.setattr(sparsify, "run_and_show", lambda config, as_json: found.append(config))
        if words[0] == "compress":
            assert compress.running.run(compress.app, words[1:]) == 0
        else:
            assert stage(*words[1:]) == 0
        return found[0]

    return parse


@pytest.mark.parametrize("name", JOBS)
def test_the_same_job(name, parsed):
    config = job_config("llama", "out put", **JOBS[name])
    assert parsed(shlex.split(command_of(config))) == config


def test_of_single_weights(parsed):
    config = sparsify_config("llama", "out", sparsity=0.6, method="wanda", quantize="w4a16")
    assert parsed(shlex.split(command_of(config))) == config


def test_options_of_python_are_told_behind():
    config = job_config("llama", "out", keep=0.7, protect=(0, -1), refine_epochs=4, select="score")
    command, _, told = command_of(config).partition("  # ")
    assert command == "compress llama out --keep 0.7 --repair refine:4"
    assert told == "in Python, with select='score', protect=(0, -1)"


def test_files_go_by_their_names_alone(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("words")
    config = job_config(tmp_path, tmp_path / "out", keep=0.7, calibration=f"{text}[0:4]")
    assert settings_of(config)["calibration"] == "text.txt"
    assert str(tmp_path) not in command_of(config)
    assert "--calibration 'text.txt[0:4]'" in command_of(config)


def test_stages_alone_have_the_others():
    """What `compress` has no flag for, though it begins with `--`."""
    offered = {
        name for panel in compress.PANELS.values() for names in panel.values() for name in names
    }
    flags = {
        name_of(each): each.metadata["flag"]
        for kind in GROUPS.values()
        for each in options_of(kind)
    }
    ours = {name for name, flag in flags.items() if flag.startswith("--")}
    assert ours - offered == {*OF_STAGES}
