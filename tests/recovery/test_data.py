"""What is trained on: every position of a text, the answers of a row, and refusals that name the row."""

import json

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.recovery.data import IGNORED, Example, read_data

CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}~{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def tokenizer(llama) -> PreTrainedTokenizerFast:
    """One token a character, BOS 1, EOS 2."""
    return Checkpoint(llama).tokenizer()


def rows_file(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def counted(example: Example, tokenizer) -> str:
    """What the loss is taken on, as text."""
    return "".join(tokenizer.convert_ids_to_tokens(example.ids[example.labels != IGNORED].tolist()))


def everything(data) -> list[Example]:
    return [*data.train, *data.held_back]


def test_documents_count_from_their_second_token_on(tokenizer, tmp_path):
    texts = [f"{c * 20} the end" for c in "abcdefgh"]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    data = read_data(str(tmp_path / "texts.json"), tokenizer, 16, 100)
    assert len(data.train) == 7 and len(data.held_back) == 1
    for example in everything(data):
        assert torch.equal(example.ids, example.labels)
        assert len(example.ids) == 16 and example.ids[0] == tokenizer.bos_token_id
        assert example.predicted.all()
    assert sorted(tokenizer.decode(e.ids[1]) for e in everything(data)) == list("abcdefgh")
    assert data.protocol["tokens"] == 7 * 15
    again = read_data(str(tmp_path / "texts.json"), tokenizer, 16, 100)
    assert all(map(torch.equal, [e.ids for e in data.train], [e.ids for e in again.train]))
    other = read_data(str(tmp_path / "texts.json"), tokenizer, 16, 100, seed=1)
    assert [e.ids.tolist() for e in data.train] != [e.ids.tolist() for e in other.train]


def test_documents_of_a_range_and_no_more_than_wanted(tokenizer, tmp_path):
    (tmp_path / "texts.json").write_text(json.dumps([c * 20 for c in "abcdefgh"]))
    data = read_data(str(tmp_path / "texts.json"), tokenizer, 16, 3, "2:7")
    assert len(data.train) == 3
    assert {tokenizer.decode(e.ids[1]) for e in everything(data)} <= set("cdefg")


def test_windows_are_shuffled_and_spread_over_the_text(tokenizer, tmp_path):
    (tmp_path / "text.txt").write_text("".join(chr(97 + i) * 15 for i in range(20)))
    data = read_data(str(tmp_path / "text.txt"), tokenizer, 16, 100)
    firsts = [tokenizer.decode(e.ids[1]) for e in everything(data)]
    assert sorted(firsts) == [chr(97 + i) for i in range(20)] and firsts != sorted(firsts)


@pytest.mark.parametrize(
    ("row", "text", "answers"),
    [
        (
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            "<s>### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3</s>",
            "3</s>",
        ),
        (
            {"instruction": "Sing", "input": "", "output": "la la"},
            "<s>### Instruction:\nSing\n\n### Response:\nla la</s>",
            "la la</s>",
        ),
        ({"prompt": "1+1=", "completion": "2"}, "<s>1+1=2</s>", "2</s>"),
        ({"text": "all of it"}, "<s>all of it</s>", "all of it</s>"),
    ],
)
def test_rows_count_their_answers_alone(tokenizer, tmp_path, row, text, answers):
    data = read_data(
        rows_file(tmp_path, [row, {"prompt": "a", "completion": "b"}]), tokenizer, 99, 9
    )
    written = {
        "".join(tokenizer.convert_ids_to_tokens(e.ids.tolist())): e for e in everything(data)
    }
    assert counted(written[text], tokenizer) == answers


def test_conversations_count_every_answer(tokenizer, tmp_path):
    tokenizer.chat_template = CHAT
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "bye"},
        {"role": "assistant", "content": "so long"},
    ]
    row = {"instruction": "Go", "input": "on", "output": "gone"}
    data = read_data(rows_file(tmp_path, [{"messages": messages}, row]), tokenizer, 99, 9)
    written = {
        "".join(tokenizer.convert_ids_to_tokens(e.ids.tolist())): e for e in everything(data)
    }
    assert counted(
        written["[user]hi~[assistant]yes?~[user]bye~[assistant]so long~"], tokenizer
    ) == ("yes?~so long~")
    assert counted(written["[user]Go\n\non~[assistant]gone~"], tokenizer) == "gone~"


def test_a_token_that_ends_inside_an_answer_counts(stories, tmp_path):
    """Tokens may begin before an answer does: ` a` is one token of this vocabulary."""
    tokenizer = Checkpoint(stories[0]).tokenizer()
    prompt, completion = "Once upon", " a time there was a cat"
    path = rows_file(tmp_path, [{"prompt": prompt, "completion": completion}] * 2)
    example = read_data(path, tokenizer, 99, 9).train[0]
    whole = tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
    ids = [tokenizer.bos_token_id, *whole, tokenizer.eos_token_id]
    assert example.ids.tolist() == ids
    counts = example.ids[example.labels != IGNORED].tolist()
    assert ids[-len(counts) :] == counts
    assert tokenizer.decode(counts[:-1]).strip() == completion.strip()


def test_answers_beyond_the_length_are_left_out_and_counted(tokenizer, tmp_path):
    rows = [{"prompt": "x" * n, "completion": "yes"} for n in (2, 3, 30)]
    data = read_data(rows_file(tmp_path, rows), tokenizer, 12, 9)
    assert len(everything(data)) == 2 and data.protocol["rows_too_long"] == 1
    with pytest.raises(InputError, match="begins within 3 tokens"):
        read_data(rows_file(tmp_path, rows), tokenizer, 3, 9)


GOOD = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, {"prompt": "a", "completion": " "}], "Line 2 of .*: completion is empty"),
        ([GOOD, {"prompt": 3, "completion": "b"}], "Line 2 of .*: prompt is 3, and must be"),
        ([{"instruction": "a", "input": 5, "output": "b"}], "Line 1 of .*: input is 5"),
        ([GOOD, GOOD, {"question": "a"}], "Line 3 of .* has none of the keys text, messages"),
        ([GOOD, ["a", "b"]], "Line 2 of .* is list, and must be an object"),
        ([{"messages": [{"role": "user", "content": "a"}]}], "Line 1 .* no chat template"),
        ([{"messages": "hello"}], "Line 1 .* not a list of objects"),
        ([GOOD, {"text": ""}], "Line 2 of .*: text is ''"),
        ([GOOD], "gives 1 sequence"),
    ],
)
def test_bad_rows_are_named(tokenizer, tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_data(rows_file(tmp_path, rows), tokenizer, 99, 9)


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (CHAT, [{"role": "user", "content": "a"}], "has no answer"),
        ("{{ raise_exception('no') }}", None, "refused by the chat template: no"),
        ("{{ messages | length }}", None, "rewrites earlier turns"),
    ],
)
def test_bad_conversations_are_named(tokenizer, tmp_path, template, messages, message):
    tokenizer.chat_template = template
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = rows_file(tmp_path, [{"messages": messages or good}])
    with pytest.raises(InputError, match=f"Line 1 of .*{message}"):
        read_data(path, tokenizer, 99, 9)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt"\n', "Line 2 of .* is not JSON"),
        ("a.json", '{"prompt": "a"}', "is not a JSON list but dict"),
        ("a.json", "[1", "is not JSON"),
    ],
)
def test_bad_files_are_named(tokenizer, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_data(str(tmp_path / name), tokenizer, 99, 9)


@pytest.mark.parametrize(
    "rows",
    [
        [GOOD, {"prompt": "a\ud83d", "completion": "b\udc00"}],
        [{"text": "abc"}, {"text": "a\ud83d\ud83d"}],
        [GOOD, {"instruction": "a", "output": "\ud83d\ud83d b"}],
    ],
)
def test_halves_of_characters_are_replaced_and_counted(tokenizer, tmp_path, rows):
    path = rows_file(tmp_path, rows * 20)
    data = read_data(path, tokenizer, 99, 9)
    assert data.protocol["replaced"] == {"characters": 40, "first": f"Line 2 of {path}"}
    assert read_data(rows_file(tmp_path, [GOOD] * 2), tokenizer, 99, 9).protocol["replaced"] is None


def test_a_long_row_gives_what_all_of_it_would(stories, tmp_path):
    tokenizer = Checkpoint(stories[0]).tokenizer()
    row = {"prompt": "Once upon a time", "completion": " there was a cat." * 20_000}
    data = read_data(rows_file(tmp_path, [row] * 2), tokenizer, 99, 9)
    whole = tokenizer(row["prompt"] + row["completion"], add_special_tokens=False, verbose=False)
    assert data.train[0].ids.tolist() == [tokenizer.bos_token_id, *whole["input_ids"]][:99]
