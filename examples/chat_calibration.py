"""Calibrate on conversations, written as the model reads them: by its tokenizer's chat template.

    python examples/chat_calibration.py [SOURCE [DEST [ROWS.jsonl]]]

ROWS has a line a conversation, {"messages": [{"role": "user", "content": "..."}, ...]}. A base model has
no template, and is given ChatML's here; a chat model's own is used.
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

import compressor

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TALK = [("user", "What does os.path.join do?"), ("assistant", "It joins parts of a path.")]


def main(source="examples/tiny-llama", dest="build/chat-90", rows=None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = tokenizer.chat_template or CHATML
    talks = [[{"role": role, "content": text} for role, text in TALK]] * 16
    if rows:
        talks = [json.loads(line)["messages"] for line in Path(rows).read_text().splitlines()]
    written = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
    # A job opens every document with BOS itself.
    texts = [{"text": text.removeprefix(tokenizer.bos_token or "")} for text in written]
    file = Path(f"{dest}.jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(text) + "\n" for text in texts))
    (result,) = compressor.compress(source, dest, keep=0.9, fast=True, calibration=str(file))
    print(f"{dest}: perplexity {result.perplexity_before:.2f} -> {result.perplexity_after:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
