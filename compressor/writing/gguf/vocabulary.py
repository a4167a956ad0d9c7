"""The tokenizer of a GGUF file, from the tokenizer.json that transformers computes with.

llama.cpp has two algorithms that matter here: `llama`, pieces as of sentencepiece, merged by their
scores, and `gpt2`, byte-level BPE, merged by a list after a text was taken apart by a rule that it knows
by name.
"""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from compressor.errors import InputError

if TYPE_CHECKING:  # it takes seconds to import
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's types of tokens
LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Names of llama.cpp for what comes before the merges: the parts of a tokenizer.json (`steps_of`), and
# whether a word that is a token is taken whole.
BEFORE = {
    (("ByteLevel", True), False): "gpt-2",
    (("Digits", True), ("ByteLevel", True), False): "smollm",
    (("Split", LETTERS + r"|\p{N}{1,3}" + REST), ("ByteLevel", False), True): "llama-bpe",
    (("Split", LETTERS + r"|\p{N}" + REST), ("ByteLevel", False), False): "qwen2",
}
SPACE = "\u2581"
UNCOMPOSED = (
    "The tokenizer composes characters first (NFC) and llama.cpp does not: a text with combining marks "
    "gets other ids there."
)
STRIPPING = (
    "Some special tokens swallow the spaces beside them, and in llama.cpp they do not: a text with "
    "spaces there gets other ids."
)


@dataclass
class Vocabulary:
    """What is written.

    model: the algorithm. tokens, types, scores: an entry each row of the embedding. before: the name of
    what takes a text apart. specials: ids by gguf's names.
    """

    model: str
    tokens: list[str]
    types: list[int]
    before: str
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    specials: dict[str, int] = field(default_factory=dict)
    begins: bool = False  # whether bos is put in front unasked
    ends: bool = False
    space: bool = False  # whether a text gets a space in front
    template: str | None = None
    notes: list[str] = field(default_factory=list)


def vocabulary_of(tokenizer: "PreTrainedTokenizerBase", rows: int) -> Vocabulary:
    """InputError, which names what is not known, for a tokenizer that llama.cpp has not.

    rows: of the embedding.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    if model["type"] != "BPE":
        raise InputError(
            f"The tokenizer is {model['type']}, and llama.cpp is given BPE (of bytes or of pieces)."
        )
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    tokens, types = tokens_of(state, rows)
    if model.get("byte_fallback"):
        made = Vocabulary("llama", tokens, types, "default", space=spaced(state))
        made.scores = scores_of(tokens, merges)
    else:
        made = Vocabulary("gpt2", tokens, types, before_of(state))
        made.merges = [" ".join(pair) for pair in merges]
        made.notes = [UNCOMPOSED] if state["normalizer"] else []
    if any(added["lstrip"] or added["rstrip"] for added in state["added_tokens"]):
        made.notes.append(STRIPPING)
    made.begins, made.ends = around(tokenizer)
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    made.specials = {name: number for name, number in ids.items() if number is not None}
    made.template = template_of(tokenizer)
    return made


def tokens_of(state: dict, rows: int) -> tuple[list[str], list[int]]:
    """Every row's token and its type; rows without one are unused."""
    tokens, types = [f"[PAD{row}]" for row in range(rows)], [UNUSED] * rows
    unknown, pieces = state["model"].get("unk_token"), state["model"].get("byte_fallback")
    entries = [(token, number, NORMAL) for token, number in state["model"]["vocab"].items()]
    for added in state["added_tokens"]:
        entries.append((added["content"], added["id"], CONTROL if added["special"] else USER))
    for token, number, kind in entries:
        if number >= rows:
            raise InputError(
                f"The tokenizer gives {token!r} the id {number}, and the embedding has {rows} rows."
            )
        if pieces and kind == NORMAL and is_byte(token):
            kind = BYTE
        tokens[number], types[number] = token, UNKNOWN if token == unknown else kind
    return tokens, types


def is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def scores_of(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """Pieces are merged by descending scores: that of one is by the earliest merge that makes it."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks[token]) if token in ranks else -1e9 for token in tokens]


def steps_of(state: dict) -> tuple:
    """The pre-tokenizer's parts as `BEFORE` has them."""
    pre = state["pre_tokenizer"] or {"type": "none"}
    steps = []
    for step in pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]:
        kind = step["type"]
        if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            steps.append((kind, step["pattern"].get("Regex")))
        elif kind == "Digits":
            steps.append((kind, step["individual_digits"]))
        elif kind == "ByteLevel" and not step["add_prefix_space"]:
            steps.append((kind, step["use_regex"]))
        else:
            steps.append((json.dumps(step), None))
    return tuple(steps)


def before_of(state: dict) -> str:
    steps, whole = steps_of(state), bool(state["model"].get("ignore_merges"))
    normalizer = (state["normalizer"] or {}).get("type")
    name = BEFORE.get((*steps, whole))
    if name is None or normalizer not in (None, "NFC"):
        shown = (
            f"normalizer {normalizer}" if name else f"pre-tokenizer {state['pre_tokenizer']!r:.300}"
        )
        raise InputError(
            f"The tokenizer's {shown} is none that is known by a name in llama.cpp (known are "
            f"{', '.join(BEFORE.values())}), which would take texts apart otherwise; its own "
            "convert_hf_to_gguf.py may know it."
        )
    return name


def spaced(state: dict) -> bool:
    """Whether a text of pieces gets a space in front; InputError for other ways to make pieces."""
    normalizer = json.dumps(state["normalizer"], ensure_ascii=False)
    pre = state["pre_tokenizer"] or {}
    known = SPACE in normalizer if not pre else pre["type"] == "Metaspace"
    if not known or pre.get("split"):
        raise InputError(
            f"The tokenizer's normalizer {state['normalizer']!r:.200} and pre-tokenizer {pre!r:.200} "
            "are not those of sentencepiece, by which llama.cpp would take texts apart."
        )
    return '"Prepend"' in normalizer or pre.get("prepend_scheme") in ("always", "first")


def around(tokenizer: "PreTrainedTokenizerBase") -> tuple[bool, bool]:
    """Whether bos is put in front of a text and eos behind it; InputError for anything else."""
    text = "a b"
    inner = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(text)["input_ids"]
    for begins in (False, True):
        for ends in (False, True):
            front = [tokenizer.bos_token_id] * begins
            if whole == [*front, *inner, *[tokenizer.eos_token_id] * ends]:
                return begins, ends
    raise InputError(
        f"The tokenizer makes {whole} of {text!r}, which without special tokens is {inner}; llama.cpp "
        "puts bos in front, eos behind, and nothing else."
    )


def template_of(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The chat template; of several the default one."""
    given = getattr(tokenizer, "chat_template", None)
    return given.get("default") if isinstance(given, dict) else given


def put_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.before)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for name, number in vocabulary.specials.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.begins)
    writer.add_add_eos_token(vocabulary.ends)
    writer.add_add_space_prefix(vocabulary.space)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)
