"""Instruction rows: a conversation as one string, and which of its characters are answers.

Rows of four forms, which one file may mix: `text`, which counts as a whole, `messages` (a list of
{role, content}), `instruction` with `output` and perhaps `input`, and `prompt` with `completion`.
`messages` and `instruction` are written by the tokenizer's chat template; an `instruction` row has a
form of its own for tokenizers without one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.errors import InputError


@dataclass(frozen=True)
class Conversation:
    """`answers` are spans [begin, end) of characters. A bare text has to be opened by BOS and closed
    by EOS; what a chat template wrote has its own marks.
    """

    text: str
    answers: Sequence[tuple[int, int]]
    bare: bool


def conversation(row: dict, tokenizer, where: str) -> Conversation:
    """A row as text; `InputError` begins with `where`, the row's place in its file."""
    for key, read in FORMS.items():
        if key in row:
            return read(row, tokenizer, where)
    raise InputError(
        f"{where} has none of the keys {', '.join(FORMS)}; its keys are {', '.join(row)}."
    )


def from_text(row: dict, tokenizer, where: str) -> Conversation:
    text = row["text"]
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: text is {text!r}, and must be a string with content.")
    return Conversation(text, [(0, len(text))], bare=True)


def from_messages(row: dict, tokenizer, where: str) -> Conversation:
    messages = row["messages"]
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    ):
        raise InputError(f"{where}: messages is not a list of objects with role and content.")
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"{where} has messages, and the tokenizer has no chat template to write them with; "
            "give rows with prompt and completion."
        )
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if not turns or not any(messages[i]["content"].strip() for i in turns):
        raise InputError(f"{where} has no answer: no message of the role assistant says anything.")

    def written(count: int, **options) -> str:
        try:
            return tokenizer.apply_chat_template(messages[:count], tokenize=False, **options)
        except Exception as error:  # templates raise what they like
            raise InputError(f"{where} is refused by the chat template: {error}") from error

    text, answers = written(len(messages)), []
    for turn in turns:
        asked, answered = written(turn, add_generation_prompt=True), written(turn + 1)
        if not answered.startswith(asked) or not text.startswith(answered):
            raise InputError(
                f"{where}: the chat template rewrites earlier turns, so its answers have no fixed "
                "place; split it into rows of one answer each."
            )
        answers.append((len(asked), len(answered)))
    return Conversation(text, answers, bare=False)


def from_instruction(row: dict, tokenizer, where: str) -> Conversation:
    instruction, answer = string(row, "instruction", where), string(row, "output", where)
    extra = string(row, "input", where, optional=True)
    if getattr(tokenizer, "chat_template", None):
        question = "\n\n".join(filter(str.strip, (instruction, extra)))
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return from_messages({"messages": messages}, tokenizer, where)
    parts = [f"### Instruction:\n{instruction}\n\n"]
    parts += [f"### Input:\n{extra}\n\n"] if extra.strip() else []
    return completed("".join(parts) + "### Response:\n", answer)


def from_prompt(row: dict, tokenizer, where: str) -> Conversation:
    return completed(string(row, "prompt", where), string(row, "completion", where))


def completed(prompt: str, answer: str) -> Conversation:
    return Conversation(prompt + answer, [(len(prompt), len(prompt + answer))], bare=True)


def string(row: dict, key: str, where: str, optional: bool = False) -> str:
    value = row.get(key)
    if optional and value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} is {value!r}, and must be a string.")
    if not optional and not value.strip():
        raise InputError(f"{where}: {key} is empty.")
    return value


FORMS = {
    "text": from_text,
    "messages": from_messages,
    "instruction": from_instruction,
    "prompt": from_prompt,
}
