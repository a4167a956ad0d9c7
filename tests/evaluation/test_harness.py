"""Tasks of lm-eval on a small model: the same answers as by lm-eval's own words and by hand."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from huggingface_hub import constants
from jobs import stage
from lm_eval import tasks

from compressor.evaluation import harness
from compressor.evaluation.questions import as_task, read_questions
from compressor.model.loading import load

FILES = Path(__file__).parents[3] / "shared/data/zeroshot"
ROWS = [
    {"query": f"The {thing} is", "choices": ["up", "far down", "left"][: 2 + n % 2], "gold": n % 2}
    for n, thing in enumerate(("box", "dog", "jug", "fox", "quick fox", "lazy dog"))
]
BLANKS = [
    {"sentence": "The box is on the jug, so _ is down.", "choices": ["the box", "it"], "gold": 0},
    {"sentence": "A fox fled as _ saw a dog.", "choices": ["it", "no fox"], "gold": 1},
]


@pytest.fixture(scope="module", autouse=True)
def few_tasks():
    """lm-eval reads the names of thousands of tasks, which takes seconds; here those of a few."""
    folder = Path(tasks.__file__).parent
    places = [str(folder / name) for name in ("arc", "openbookqa", "piqa", "wikitext")]
    few = partial(tasks.TaskManager, include_path=places, include_defaults=False)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tasks, "TaskManager", few)
        patched.setattr(harness, "is_reached", lambda: True)
        yield


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for name, rows in (("piqa", ROWS), ("ours", ROWS), ("blanks", BLANKS)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def losses(model, tokenizer, before: str, after: str) -> float:
    """The log-likelihood of `after` behind `before`, by the definition."""
    ids = tokenizer(before + after, return_tensors="pt")["input_ids"]
    known = len(tokenizer(before)["input_ids"])
    with torch.no_grad():
        logs = model(ids).logits[0, :-1].log_softmax(-1)
    return logs.gather(1, ids[0, 1:, None])[known - 1 :].sum().item()


def expected(model, tokenizer, name: str, row: dict) -> dict[str, int]:
    """By metric, whether a question is answered right."""
    if "sentence" in row:
        begin, end = row["sentence"].split("_")
        found = [losses(model, tokenizer, begin + c, f" {end.strip()}") for c in row["choices"]]
        return {"acc": int(found.index(max(found)) == row["gold"])}
    prompt = f"Question: {row['query']}\nAnswer:" if name == "piqa" else row["query"]
    found = [losses(model, tokenizer, prompt, f" {choice}") for choice in row["choices"]]
    by_length = [loss / len(choice) for loss, choice in zip(found, row["choices"], strict=True)]
    ways = {"acc": found, "acc_norm": by_length}
    return {metric: int(each.index(max(each)) == row["gold"]) for metric, each in ways.items()}


def test_answers_are_those_of_the_definition(llama, files, make_checkpoint, tmp_path, capsys):
    other = make_checkpoint(tmp_path / "other", intermediate_size=24)
    asked = ("--tasks", "piqa, ours,blanks", "--task-files", files, "--against", other)
    assert stage("eval", llama, *asked, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["against"]) == (llama.name, "other")
    models = [load(folder, torch.float32) for folder in (other, llama)]
    for name, rows in (("piqa", ROWS), ("ours", ROWS), ("blanks", BLANKS)):
        before, after = ([expected(*each, name, row) for row in rows] for each in models)
        told = found["tasks"][name]
        assert told["questions"] == len(rows) and told["source"].startswith("lm-eval ")
        assert told["chance"] == pytest.approx(sum(1 / len(r["choices"]) for r in rows) / len(rows))
        assert told["metrics"].keys() == after[0].keys()
        for metric, said in told["metrics"].items():
            pairs = [(b[metric], a[metric]) for b, a in zip(before, after, strict=True)]
            assert said["value"] == pytest.approx(sum(a for _, a in pairs) / len(rows))
            assert (said["lost"], said["won"]) == (pairs.count((1, 0)), pairs.count((0, 1)))


def test_the_terminal_has_a_row_a_metric(llama, files, capsys):
    asked = ("--tasks", "ours", "--task-files", files, "--questions", 2)
    assert stage("eval", llama, *asked) == 0
    printed = capsys.readouterr()
    assert "ours, acc_norm" in printed.out and "chance" in printed.out and "lost" not in printed.out
    assert "%" not in printed.err  # bars of lm-eval's own


def test_real_questions(make_checkpoint, tmp_path, capsys):
    if not FILES.exists():
        pytest.skip("needs ../shared, with questions of four tasks")
    names = {"arc_easy": 0.25, "openbookqa": 0.25, "piqa": 0.5, "winogrande": 0.5}
    asked = ("--tasks", ",".join(names), "--task-files", FILES, "--questions", 2)
    model = make_checkpoint(tmp_path / "model", max_position_embeddings=1024)
    assert stage("eval", model, *asked, "--json") == 0
    told = json.loads(capsys.readouterr().out)["tasks"]
    assert {name: task["chance"] for name, task in told.items()} == names
    assert {name for name, task in told.items() if "acc_norm" in task["metrics"]} == {*names} - {
        "winogrande"
    }


def test_a_choice_longer_than_the_model_is_a_sentence(llama, tmp_path, capsys):
    row = {"query": "This is", "choices": ["no", "very " * 200], "gold": 0}
    (tmp_path / "long.jsonl").write_text(json.dumps(row))
    assert stage("eval", llama, "--tasks", "long", "--task-files", tmp_path) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "The task long has a choice of" in said and "positions; choose other tasks." in said


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "openbookqa", "piqa"])
def test_prompts_are_lm_evals_own(name, tmp_path):
    """Those of the tasks whose queries are put into words, by lm-eval's own files."""
    fields = ("question", "goal", "question_stem")
    own = tasks.TaskManager().task_index[name].cfg["doc_to_text"]
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(ROWS[0]))
    ours = as_task(read_questions(tmp_path, name))["doc_to_text"](ROWS[0])
    for field in fields:
        own = own.replace("{{" + field + "}}", ROWS[0]["query"])
    assert ours == (ROWS[0]["query"] if own in fields else own)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Give a text to predict (--text) or tasks to answer (--tasks): one of them."),
        (["--tasks", "piqa", "--text", "t"], "--tasks): one of them."),
        (["--text", "stdlib", "--questions", 3], "--questions is for --tasks; leave it out."),
        (["--tasks", "piqa", "--length", 64], "--length is for --text"),
        (["--tasks", " , "], "--tasks names none"),
        (["--tasks", "piqa,piqa"], "--tasks has piqa twice"),
        (["--tasks", "piqa", "--questions", 0], "--questions must be at least 1, not 0."),
        (["--tasks", "piqa", "--against", "nowhere"], "There is no folder 'nowhere'"),
        (["--tasks", "piqe"], "lm-eval has no task 'piqe'; there is piqa"),
        (["--tasks", "wikitext"], "is judged by word_perplexity"),
    ],
)
def test_what_cannot_be_asked_is_refused(llama, options, said, capsys, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda **_: dict.fromkeys(SPLITS, FakeSet()))
    assert stage("eval", llama, *options) == 2
    assert said in " ".join(capsys.readouterr().err.split())


SPLITS = ("train", "validation", "test")


class FakeSet(list):
    """An empty data set, for a task that is refused before it is asked."""

    features: ClassVar = {}

    def __init__(self):
        super().__init__([{"page": ""}])


@pytest.mark.parametrize(
    ("reached", "code", "sentence"),
    [
        (True, 2, "cannot open the questions of piqa: no route to the hub. Choose other tasks"),
        (
            False,
            4,
            "The hub cannot be reached for the questions of piqa, and no copy of them is here",
        ),
    ],
)
def test_no_questions_are_a_sentence(llama, capsys, monkeypatch, reached, code, sentence):
    def refused(**_):
        assert constants.HF_HUB_OFFLINE is not reached
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(harness, "is_reached", lambda: reached)
    monkeypatch.setattr("datasets.load_dataset", refused)
    assert stage("eval", llama, "--tasks", "piqa") == code
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_lm_eval_is_named_where_it_is_missing(monkeypatch, capsys, llama):
    monkeypatch.setitem(sys.modules, "lm_eval.api.task", None)
    assert stage("eval", llama, "--tasks", "piqa") == 4
    assert "pip install 'compressor-llm[eval]'" in " ".join(capsys.readouterr().err.split())
