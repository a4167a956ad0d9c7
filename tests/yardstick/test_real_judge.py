"""What judges the results of `make real`: by transformers alone, and only what loads cleanly."""

import ast
import json
import math
from pathlib import Path

import jinja2
import pytest
import real_accuracy
import real_judge
import stock
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import compressor


def told(capsys, *given, **options) -> dict:
    capsys.readouterr()
    real_judge.main(*given, **options)
    return json.loads(capsys.readouterr().out)


def test_the_judge_computes_what_it_says(model, data, tmp_path, capsys):
    small = tmp_path / "small"
    widths = {"keep_blocks": 0.6, "protect": (0,), "layout": "per-layer"}  # with code of its own
    compressor.compress(model, small, repair="none", evaluation="none", verify=False, **widths)
    found = told(capsys, small, data, model, counts=[1, 3], part=2, length=32)
    rows = stock.windows(model, data / stock.JUDGED["wikitext2"], 3, 32)
    for count in (1, 3):
        expected = compressor.evaluate(small, rows[:count])["perplexity"]
        assert found["perplexity"][str(count)] == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        ours, theirs = (
            AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=True
            )(rows[:2]).logits[:, :-1]
            for folder in (small, model)
        )
    p, q = theirs.softmax(-1), ours.softmax(-1)
    assert found["kl"] == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-3)
    assert found["top1"] == float((p.argmax(-1) == q.argmax(-1)).double().mean())
    assert told(capsys, model, data, model, counts=[1], part=1, length=32)["kl"] < 1e-6


def test_perplexity_of_what_is_beyond_numbers():
    assert real_judge.perplexity([1e9], 2) == math.inf


@pytest.mark.parametrize("change", ["missing", "unexpected", "another shape"])
def test_an_unclean_load_is_not_judged(change, model, data, tmp_path):
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors["model.layers.9.mlp.up_proj.weight"] = tensors[name].clone()
    else:
        tensors[name] = tensors[name][:-1].clone()
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    said = "transformers does not load" if change == "another shape" else f"1 {change} keys, model"
    with pytest.raises(SystemExit, match=said):
        real_judge.main(tmp_path, data, counts=[1], part=1, length=32)


def test_too_short_a_text(model, data):
    with pytest.raises(SystemExit, match=r"has [\d,]+ tokens, too few for 900 windows of 32; ask"):
        stock.windows(model, data / stock.JUDGED["wikitext2"], 900, 32)


@pytest.mark.parametrize("script", ["stock", "real_judge", "real_forward", "real_accuracy"])
def test_what_judges_knows_nothing_of_the_package(script):
    tree = ast.parse((Path(stock.__file__).parent / f"{script}.py").read_text())
    names = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert "torch" in names or "stock" in names
    assert not [name for name in names if name.startswith("compressor")]


def test_tasks_are_written_as_lm_eval_writes_them():
    question = {"query": "Which?", "choices": ["a", "b"], "gold": 1}
    blank = {"sentence": "The cat fears the dog as _ is big.", "choices": ["cat", "dog"], "gold": 1}
    expected = {
        "arc_easy": "Question: Which?\nAnswer:",
        "openbookqa": "Which?",
        "piqa": "Question: Which?\nAnswer:",
        "winogrande": "1",
    }
    for name, prompt in expected.items():
        task = real_accuracy.task(name, Path("/data"), "/scratch")
        row = blank if name == "winogrande" else question
        assert jinja2.Template(task["doc_to_text"]).render(row) == prompt
        choices = ast.literal_eval(jinja2.Template(task["doc_to_choice"]).render(row))
        if name == "winogrande":
            assert choices == ["The cat fears the dog as cat", "The cat fears the dog as dog"]
            assert jinja2.Template(task["doc_to_target"]).render(row) == "is big."
        else:
            assert choices == ["a", "b"]


def test_accuracy_needs_lm_eval(without, model, data):
    without("lm_eval")
    with pytest.raises(SystemExit, match=r"needs lm-eval .*pip install -e '.\[real\]'"):
        real_accuracy.main(model, data)
