"""Questions of tasks in files: which file is a task's, and what a line must be."""

import json

import pytest

from compressor.errors import InputError
from compressor.evaluation.questions import read_questions

GOOD = {"query": "Ice is", "choices": ["cold", "hot", "dry"], "gold": 0}
BLANK = {"sentence": "It fled as _ was scared.", "choices": ["a cat", "a dog"], "gold": 1}


def written(folder, name="ours.jsonl", *rows):
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows or (GOOD,))
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("file", ["arc_easy.jsonl", "arc-easy_test.jsonl", "arc_easy_val.jsonl"])
def test_a_file_is_found_by_the_name_of_its_task(tmp_path, file):
    written(tmp_path, "arc_easy_hard.jsonl")
    found = read_questions(written(tmp_path, file, GOOD, GOOD), "arc_easy")
    assert (found.file.name, found.kind, len(found.rows)) == (file, "query", 2)


def test_what_is_not_read_is_left_out(tmp_path):
    (row,) = read_questions(written(tmp_path, "ours.jsonl", BLANK | {"id": 3}), "ours").rows
    assert row == BLANK


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ([], "is not an object with either a query or a sentence"),
        (GOOD | BLANK, "is not an object with either a query or a sentence"),
        (GOOD | {"query": 3}, "The query of .* is not text: 3"),
        (BLANK | {"sentence": "None."}, "is not text with one blank, _: 'None.'"),
        (GOOD | {"choices": ["one"]}, r"not two or more texts: \['one'\]"),
        (GOOD | {"choices": ["one", ""]}, "not two or more texts"),
        (GOOD | {"gold": 3}, "not the place of a choice, 0 to 2: 3"),
        (GOOD | {"gold": True}, "not the place of a choice, 0 to 2: True"),
    ],
)
def test_a_line_that_is_no_question_is_refused(tmp_path, row, said):
    with pytest.raises(InputError, match=said):
        read_questions(written(tmp_path, "ours.jsonl", row), "ours")


def test_files_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"There is no folder .*missing of questions"):
        read_questions(tmp_path / "missing", "ours")
    with pytest.raises(InputError, match=r"no questions of piqa, piqa.jsonl; it has ours.jsonl\."):
        read_questions(written(tmp_path), "piqa")
    with pytest.raises(InputError, match=r"ours.jsonl and ours_test.jsonl, which both are of ours"):
        read_questions(written(tmp_path, "ours_test.jsonl"), "ours")
    with pytest.raises(InputError, match="has no questions; give one in every line"):
        read_questions(written(tmp_path, "empty.jsonl", " "), "empty")
    with pytest.raises(InputError, match="has queries and sentences"):
        read_questions(written(tmp_path, "both.jsonl", GOOD, BLANK), "both")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_questions(tmp_path, "bytes")
