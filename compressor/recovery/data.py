"""What recovery trains on: token sequences, and on which of their tokens the loss is taken."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from compressor.errors import InputError
from compressor.recovery.instructions import Conversation, conversation
from compressor.text.encoding import encode_openings
from compressor.text.texts import ROWS, Text, mended, read_rows, read_text
from compressor.text.tokens import STRINGS, parse_range, tokenize

IGNORED = -100
HELD_SHARE, HELD_MOST = 0.05, 64  # sequences held back from training to judge it by


@dataclass(frozen=True)
class Example:
    """Token ids [tokens] and labels [tokens]: the same ids where they count, `IGNORED` elsewhere."""

    ids: torch.Tensor
    labels: torch.Tensor

    @property
    def predicted(self) -> torch.Tensor:
        """bool [tokens - 1]: the positions whose next token counts."""
        return self.labels[1:] != IGNORED


@dataclass(frozen=True)
class RecoveryData:
    """Sequences to train on, others to judge by, and how they were made."""

    train: list[Example]
    held_back: list[Example]
    protocol: dict = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(len(e.ids) for e in self.train)


def read_data(
    source: str | Text,
    tokenizer,
    length: int,
    wanted: int,
    selected: str | None = None,
    seed: int = 0,
) -> RecoveryData:
    """Up to `wanted` sequences to train on, and some more to hold back, in an order of the seed's.

    source: a text, or one as `texts.read_text` knows them, or JSON / JSONL rows whose answers alone
    count (instructions.py). `selected` takes documents, rows or windows A:B of it.
    """
    total = wanted + HELD_MOST
    rows, replaced = (None, None) if isinstance(source, Text) else rows_of(source)
    if rows is None:
        text = source if isinstance(source, Text) else read_text(source)
        source = text.source
        examples, protocol = plain(text, tokenizer, length, total, selected, seed)
    else:
        examples, protocol = answered(str(source), rows, tokenizer, length, total, selected, seed)
        protocol["replaced"] = replaced
    if len(examples) < 2:
        raise InputError(
            f"The text {source!r} gives {len(examples)} sequence to recover on, and one is held back "
            "to judge by; give at least 2."
        )
    held = min(HELD_MOST, max(1, int(HELD_SHARE * len(examples))))
    train, held_back = examples[held:][:wanted], examples[:held]
    tokens = sum(int(e.predicted.sum()) for e in train)
    protocol |= {"sequences": len(train), "held_back": held, "tokens": tokens}
    return RecoveryData(train, held_back, protocol)


def shuffled(items: list, seed: int) -> list:
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
    return [items[i] for i in order]


def plain(text: Text, tokenizer, length: int, total: int, selected: str | None, seed: int):
    """Documents in a shuffled order, or windows evenly spread over the text and then shuffled."""
    if text.kind == "documents":
        strings = shuffled([s for s in text.strings[parse_range(selected)] if s.strip()], seed)
        taken = tokenize(Text(text.source, text.kind, strings), tokenizer, length, total)
        sequences = taken.sequences
    else:
        taken = tokenize(text, tokenizer, length, total, selected)
        sequences = shuffled(taken.sequences, seed)
    protocol: dict = {"source": text.source, "sha256": text.sha256, "kind": text.kind}
    protocol |= {
        "range": selected,
        "length": length,
        "bos": taken.protocol["bos"],
        "replaced": text.replaced,
    }
    return [Example(ids, ids) for ids in sequences], protocol


def rows_of(source: str) -> tuple[list[tuple[str, dict]] | None, dict | None]:
    """The rows of a JSON or JSONL file and where each is, if they are more than plain texts; and what
    was replaced in them (`texts.mended`).
    """
    path = Path(source)
    if path.suffix.lower() not in ROWS or not path.exists():
        return None, None
    rows, replaced = mended(read_rows(path))
    if all(isinstance(v, str) or (isinstance(v, dict) and "text" in v) for _, v in rows):
        return None, None
    for where, value in rows:
        if not isinstance(value, dict):
            raise InputError(f"{where} is {type(value).__name__}, and must be an object.")
    return rows, replaced


def answered(
    source: str,
    rows: list[tuple[str, dict]],
    tokenizer,
    length: int,
    total: int,
    selected: str | None,
    seed: int,
):
    """Instruction rows in a shuffled order; plain texts among them count as a whole."""
    conversations = [conversation(row, tokenizer, where) for where, row in rows]
    digest = hashlib.sha256(json.dumps([row for _, row in rows]).encode()).hexdigest()
    chosen = shuffled(conversations[parse_range(selected)], seed)
    examples, too_long = [], 0
    for begin in range(0, len(chosen), STRINGS):
        for example in encode(chosen[begin : begin + STRINGS], tokenizer, length):
            if example.predicted.any():
                examples.append(example)
            else:
                too_long += 1
        if len(examples) >= total:
            break
    if not examples:
        raise InputError(
            f"No answer in {source!r}{f' ({selected})' if selected else ''} begins within {length} "
            f"tokens ({too_long} rows); raise --length."
        )
    protocol: dict = {"source": source, "sha256": digest, "kind": "rows", "range": selected}
    protocol |= {"length": length, "rows_too_long": too_long}
    return examples[:total], protocol


def encode(conversations: list[Conversation], tokenizer, length: int) -> list[Example]:
    """Ids and labels, cut at `length`. A token counts if it ends inside an answer; EOS closes one."""
    try:
        texts = [c.text for c in conversations]
        encoded = encode_openings(tokenizer, texts, length, return_offsets_mapping=True)
    except NotImplementedError as error:
        raise InputError(
            "Instruction rows need a tokenizer that knows where its tokens lie in the text "
            "(tokenizer.json), and this one does not."
        ) from error
    opening = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    closing = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    examples = []
    for talk, ids, offsets in zip(
        conversations, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        counts = [any(b < end <= e for b, e in talk.answers) for _, end in offsets]
        if talk.bare:
            ids = opening + ids + closing
            counts = [False] * len(opening) + counts + [True] * len(closing)
        row = torch.tensor(ids[:length], dtype=torch.int64)
        examples.append(Example(row, row.where(torch.tensor(counts[:length]), IGNORED)))
    return examples
