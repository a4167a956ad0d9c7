"""Questions in files: what tasks of lm-eval ask, on machines that do not reach its data sets.

A file is JSON lines, a question each:

    {"query": "Frozen water is", "choices": ["ice", "steam"], "gold": 0}

or, where the choices fill a blank and the rest of the sentence is judged, as Winogrande has it:

    {"sentence": "The cat fled from the dog because _ was scared.", "choices": ["the cat", "the dog"],
     "gold": 0}

`gold` is the place of the right choice, from 0 on; other keys are not read. A model reads the query, a
space and a choice; the queries of `PROMPTS` stand in the words that lm-eval puts around them.
"""

from dataclasses import dataclass
from json import JSONDecodeError, loads
from pathlib import Path

from compressor.errors import InputError

ENDING = ".jsonl"
# That may end a file's name, behind the task's.
SPLITS = ("", "_test", "_val", "_validation", "_dev")
QUESTION = "Question: {}\nAnswer:"
PROMPTS = {"arc_easy": QUESTION, "arc_challenge": QUESTION, "piqa": QUESTION}
QUERY, SENTENCE, BLANK = "query", "sentence", "_"


@dataclass(frozen=True)
class Questions:
    """The questions of a task. kind: the key that all of them have, `query` or `sentence`."""

    name: str
    file: Path
    kind: str
    rows: list[dict]


def read_questions(folder: Path, name: str) -> Questions:
    """Those of the task `name` in a folder: of NAME.jsonl, or of one that names a split, too."""
    file = file_of(folder, name)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {error.reason}.") from error
    places = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not places:
        raise InputError(f"{file} has no questions; give one in every line, as JSON.")
    rows = [question(f"{file}, line {number}", line) for number, line in places]
    kinds = {QUERY if QUERY in row else SENTENCE for row in rows}
    if len(kinds) > 1:
        raise InputError(f"{file} has queries and sentences; give each kind a file of its own.")
    return Questions(name, file, kinds.pop(), rows)


def file_of(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder} of questions (--task-files).")
    stems = {name.replace("-", "_") + split for split in SPLITS}
    files = sorted(folder.glob(f"*{ENDING}"))
    found = [file for file in files if file.stem.replace("-", "_") in stems]
    if not found:
        there = ", ".join(file.name for file in files) or "no such files"
        raise InputError(f"{folder} has no questions of {name}, {name}{ENDING}; it has {there}.")
    if len(found) > 1:
        names = " and ".join(file.name for file in found)
        raise InputError(
            f"{folder} has {names}, which both are of {name}; leave one of them there."
        )
    return found[0]


def question(place: str, line: str) -> dict:
    """A line as an object; InputError, by its place, unless it is a question."""
    try:
        row = loads(line)
    except (JSONDecodeError, RecursionError) as error:
        raise InputError(f"{place} is not JSON: {error}.") from error
    if not isinstance(row, dict) or (QUERY in row) == (SENTENCE in row):
        raise InputError(f"{place} is not an object with either a query or a sentence.")
    kind = QUERY if QUERY in row else SENTENCE
    said, choices, gold = row[kind], row.get("choices"), row.get("gold")
    if not isinstance(said, str) or (kind == SENTENCE and said.count(BLANK) != 1):
        wanted = "text" if kind == QUERY else f"text with one blank, {BLANK}"
        raise InputError(f"The {kind} of {place} is not {wanted}: {said!r}.")
    texts = isinstance(choices, list) and all(isinstance(c, str) and c for c in choices)
    if not texts or len(choices) < 2:
        raise InputError(f"The choices of {place} are not two or more texts: {choices!r}.")
    if type(gold) is not int or not 0 <= gold < len(choices):
        last = len(choices) - 1
        raise InputError(
            f"The gold of {place} is not the place of a choice, 0 to {last}: {gold!r}."
        )
    return {kind: said, "choices": choices, "gold": gold}


def as_task(questions: Questions) -> dict:
    """The config of a task of lm-eval with these questions: its prompts, its choices, its metrics."""
    from datasets import Dataset  # which lm-eval brings

    name, rows = questions.name, questions.rows

    def before(row: dict) -> str:
        return row[SENTENCE].partition(BLANK)[0]

    asked: dict = {
        "doc_to_text": lambda row: PROMPTS.get(name, "{}").format(row[QUERY]),
        "doc_to_choice": lambda row: row["choices"],
        "doc_to_target": lambda row: row["gold"],
    }
    metrics = ["acc", "acc_norm"]
    if questions.kind == SENTENCE:
        # lm-eval's form for it: what is judged is the same behind either beginning, so its length says
        # nothing, and the number of the right beginning stands where else the prompt does.
        asked = {
            "doc_to_text": lambda row: row["gold"],
            "doc_to_choice": lambda row: [before(row) + choice for choice in row["choices"]],
            "doc_to_target": lambda row: row[SENTENCE].partition(BLANK)[2].strip(),
        }
        metrics = ["acc"]
    return {
        "task": name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "metric_list": [
            {"metric": each, "aggregation": "mean", "higher_is_better": True} for each in metrics
        ],
        **asked,
    }
