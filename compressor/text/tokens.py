"""Text to token windows: how it is cut, and what is written about it."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from compressor.errors import InputError
from compressor.text.encoding import ROOMY, encode_openings
from compressor.text.texts import Text

MINIMUM_TOKENS = 32
BATCH_TOKENS = 2048  # that pass through a block at once, where nobody says otherwise
STRINGS = 64  # encoded at a time
RUN = 8  # neighbours that are held back together, at most


@dataclass(frozen=True)
class Batch:
    """Token ids [sequences, tokens], padded on the right, and a mask that is true on real tokens.

    Padding on the right is never seen by a causal model's real tokens, so no attention mask is
    needed; the mask keeps it out of statistics and losses. Both are on the host, where it is known how
    many tokens are real: a device that is asked to take what a mask chooses has to count it first, and
    the host to wait for that.
    """

    ids: torch.Tensor
    mask: torch.Tensor

    @cached_property
    def whole(self) -> bool:
        """Whether there is no padding."""
        return bool(self.mask.all())

    @cached_property
    def tokens(self) -> int:
        return int(self.mask.sum())

    @cached_property
    def predicted(self) -> int:
        """Tokens that have one before them."""
        return int(self.mask[:, 1:].sum())

    def parts(self, tokens: int) -> "list[Batch]":
        """The same sequences in their order, at most so many tokens with padding at once, or one."""
        count = max(1, tokens // self.ids.shape[1])
        if count >= len(self.ids):
            return [self]
        begins = range(0, len(self.ids), count)
        return [part for begin in begins for part in self.rows(begin, begin + count)]

    def rows(self, begin: int, end: int) -> "list[Batch]":
        """These sequences as a batch, less the padding that all have; none where there are none."""
        ids, mask = self.ids[begin:end], self.mask[begin:end]
        if not len(ids):
            return []
        width = int(mask.sum(1).max())
        return [Batch(ids[:, :width], mask[:, :width])]

    def real(self, states: torch.Tensor) -> torch.Tensor:
        """The real tokens' rows [tokens, n], of what is as much as [sequences, tokens, n]."""
        rows = states.reshape(self.mask.numel(), -1)
        return rows if self.whole else rows[self.places["real"].on(rows.device)]

    def predicting(self, states: torch.Tensor) -> torch.Tensor:
        """Those of the tokens that another one follows, in the order of `targets`."""
        rows = states.reshape(self.mask.numel(), -1)
        return rows[self.places["predicting"].on(rows.device)]

    def targets(self, device: torch.device) -> torch.Tensor:
        """The ids that are predicted, [tokens]."""
        return self.places["targets"].on(device)

    def mask_on(self, device: torch.device) -> torch.Tensor | None:
        """The mask for a kernel that reads one; None where all tokens are real."""
        return None if self.whole else self.places["mask"].on(device)

    @cached_property
    def places(self) -> dict[str, "Moved"]:
        """Places among all tokens, and what else a device is given once."""
        following = self.mask[:, 1:]
        predicting = torch.nn.functional.pad(following, (0, 1)).flatten().nonzero()[:, 0]
        real = self.mask.flatten().nonzero()[:, 0]
        targets = self.ids[:, 1:][following]
        about = {"real": real, "predicting": predicting, "targets": targets, "mask": self.mask}
        return {name: Moved(tensor) for name, tensor in about.items()}


class Moved:
    """A tensor of the host that is copied to a device once."""

    def __init__(self, tensor: torch.Tensor):
        self.at = {tensor.device: tensor}

    def on(self, device: torch.device) -> torch.Tensor:
        if device not in self.at:
            self.at[device] = next(iter(self.at.values())).to(device)
        return self.at[device]


@dataclass(frozen=True)
class TokenSet:
    """Sequences of token ids with the protocol they were made by."""

    sequences: list[torch.Tensor]
    protocol: dict = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))

    def first(self, count: int) -> "TokenSet":
        """So many of the sequences, or all if there are fewer."""
        some = TokenSet(self.sequences[:count])
        about = {"sequences": len(some.sequences), "tokens": some.tokens}
        return TokenSet(some.sequences, self.protocol | about)

    def split(self, every: int) -> tuple["TokenSet", "TokenSet"]:
        """The sequences to fit something on, and those `held_back` to judge it by."""
        held = held_back(len(self.sequences), every)
        fitted = [s for i, s in enumerate(self.sequences) if i not in held]
        judges = [self.sequences[i] for i in held]
        return TokenSet(fitted, self.protocol), TokenSet(judges, self.protocol)

    def batches(self, tokens_per_batch: int = BATCH_TOKENS) -> list[Batch]:
        """Sequences of similar length together, at most `tokens_per_batch` with padding."""
        batches = []
        for places in of_similar_length(self.sequences, tokens_per_batch):
            members = [self.sequences[i] for i in places]
            ids = torch.nn.utils.rnn.pad_sequence(members, batch_first=True)
            lengths = torch.tensor([len(m) for m in members])
            batches.append(Batch(ids, torch.arange(ids.shape[1]) < lengths[:, None]))
        return batches


def of_similar_length(sequences: Sequence[torch.Tensor], tokens: int) -> list[list[int]]:
    """Places of sequences of similar length together, the longest first; at most so many tokens with
    padding, or a single sequence.
    """
    ordered = sorted(range(len(sequences)), key=lambda i: len(sequences[i]), reverse=True)
    batches: list[list[int]] = []
    while ordered:
        count = max(1, tokens // len(sequences[ordered[0]]))
        batches.append(ordered[:count])
        ordered = ordered[count:]
    return batches


def held_back(count: int, every: int) -> list[int]:
    """Places of one in `every` of `count` sequences, and at least of one: the ends of equal parts of the
    text, `RUN` sequences at most each.

    Neighbours are often of one document. Held back one by one, each would be judged by what was fitted
    to both of its neighbours, and what is learnt of a document would pass for what is learnt of a
    language.
    """
    many = min(count, max(1, count // every))
    parts = -(-many // RUN)
    places: list[int] = []
    for part in range(parts):
        end = count * (part + 1) // parts
        places += range(end - many * (part + 1) // parts + many * part // parts, end)
    return places


def parse_range(text: str | None) -> slice:
    """`A:B` as a slice; None is everything."""
    if text is None:
        return slice(None)
    begin, colon, end = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return slice(int(begin) if begin else None, int(end) if end else None)
    except ValueError:
        raise InputError(f"The range {text!r} is not A:B, for example 0:400.") from None


def tokenize(
    text: Text,
    tokenizer,
    length: int,
    samples: int | None = None,
    selected: str | None = None,
    budget: int | None = None,
) -> TokenSet:
    """Cut a text into sequences of at most `length` tokens, each opened by BOS if there is one.

    Documents: BOS + document, cut at `length`. Windows: the strings' tokens in one row, cut into
    pieces that do not overlap. `selected` takes documents or windows A:B; of these, `samples` keeps
    so many (the first documents, or windows evenly spread); without it, `budget` as many as come to so
    many tokens. Few windows of a long text are cut from the text itself, at equal distances, so that
    not all of it is encoded.
    """
    asked = samples
    if text.kind == "windows" and samples is None and budget is not None:
        samples = max(1, budget // length)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    span = parse_range(selected)
    strings = text.strings[span] if text.kind == "documents" else text.strings
    room = length - len(bos)
    spread = text.kind == "windows" and selected is None and samples is not None
    excerpts = spread_excerpts(strings, samples, ROOMY * room) if spread else None

    def encode(strings: list[str]) -> Iterator[torch.Tensor]:
        for begin in range(0, len(strings), STRINGS):
            part = strings[begin : begin + STRINGS]  # a list is encoded on all cores
            wanted = room if text.kind == "documents" else max(map(len, part))
            for ids in encode_openings(tokenizer, part, wanted)["input_ids"]:
                yield torch.tensor(ids, dtype=torch.int32)

    if text.kind == "documents":
        strings = [s for s in strings if s.strip()][:samples]
        pieces, left = [], math.inf if samples or budget is None else budget
        for ids in encode(strings):
            pieces.append(ids[:room])
            left -= len(bos) + len(pieces[-1])
            if left <= 0:
                break
    elif excerpts:
        pieces = [ids[:room] for ids in encode(excerpts)]
    else:
        row = torch.cat([*encode(strings or [""])])
        pieces = list(row.split(room))[span]
        if samples is not None and samples < len(pieces):
            pieces = [pieces[i * len(pieces) // samples] for i in range(samples)]
    opening = torch.tensor(bos, dtype=torch.int32)
    sequences = [torch.cat((opening, piece)).long() for piece in pieces]
    sequences = [s for s in sequences if len(s) > 1]
    tokens = sum(map(len, sequences))
    if tokens < MINIMUM_TOKENS:
        raise InputError(
            f"The text {text.source!r}{f' ({selected})' if selected else ''} is empty or too short: "
            f"{tokens} tokens, and at least {MINIMUM_TOKENS} are needed."
        )
    protocol = {
        "source": text.source,
        "sha256": text.sha256,
        "kind": text.kind,
        "part": text.part,
        "range": selected,
        "length": length,
        "stride": room if text.kind == "windows" and not excerpts else None,
        "bos": bool(bos),
        "asked": asked,
        "sequences": len(sequences),
        "tokens": tokens,
        "replaced": text.replaced,
    }
    return TokenSet(sequences, protocol)


def as_rows(rows: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Token ids [sequences, tokens], or a list of rows of any lengths, as int64 rows of two and more.

    InputError for anything else.
    """
    listed = isinstance(rows, torch.Tensor | Sequence) and not isinstance(rows, str)
    sequences = list(rows) if listed else []
    if not all(isinstance(row, torch.Tensor) and row.dim() == 1 for row in sequences) or not listed:
        raise InputError(
            "Token ids are a tensor [sequences, tokens] or a list of tensors [tokens], not "
            f"{type(rows).__name__}."
        )
    if any(row.is_floating_point() or row.dtype == torch.bool for row in sequences):
        raise InputError(f"Token ids are whole numbers, not {sequences[0].dtype}.")
    if sum(len(row) > 1 for row in sequences) == 0:
        raise InputError("There are no tokens to predict; give rows of at least two.")
    return [row.long() for row in sequences if len(row) > 1]


def protocol_of_ids(rows: list[torch.Tensor]) -> dict:
    """The protocol of ids that came without a text, as `tokenize` has it."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(str(row.tolist()).encode())
    return {
        "source": "token ids",
        "sha256": digest.hexdigest(),
        "kind": "windows",
        "part": None,
        "range": None,
        "length": max(map(len, rows)),
        "stride": None,
        "bos": False,
        "asked": None,
        "sequences": len(rows),
        "tokens": sum(map(len, rows)),
        "replaced": None,
    }


def joined(first: TokenSet, second: TokenSet) -> TokenSet:
    """The sequences of both; in the protocol of the first, that of the second is `also`."""
    protocol = first.protocol | {"also": second.protocol}
    return TokenSet(first.sequences + second.sequences, protocol)


def check_ids(sequences: list[torch.Tensor], vocabulary: int) -> None:
    """Refuse ids that the model has no embedding of."""
    least, most = min(int(s.min()) for s in sequences), max(int(s.max()) for s in sequences)
    if least < 0 or most >= vocabulary:
        raise InputError(
            f"There is the token id {least if least < 0 else most}, and the embedding has {vocabulary} "
            "rows, from 0 on; use the model's tokenizer."
        )


def spread_excerpts(strings: list[str], samples: int, characters: int) -> list[str]:
    """`samples` excerpts of so many characters at equal distances in a text, each from the start of
    a line if one is near; none if the text is not twice as long as they are together.
    """
    total = sum(map(len, strings))
    if total < 2 * samples * characters:
        return []
    joined = "".join(strings)
    excerpts = []
    for place in (i * total // samples for i in range(samples)):
        line = joined.find("\n", place, place + characters) + 1
        start = line or place
        excerpts.append(joined[start : start + characters])
    return excerpts


def describe(protocol: dict) -> str:
    """The protocol in a line."""
    bos = "BOS + " if protocol["bos"] else ""
    unit = "document" if protocol["kind"] == "documents" else "window"
    span = f"[{protocol['range']}]" if protocol["range"] else ""
    also = f"; and {describe(protocol['also'])}" if "also" in protocol else ""
    part = f" ({protocol['part']})" if protocol.get("part") else ""
    return (
        f"{protocol['source']}{span}{part}: {protocol['sequences']} x {bos}{unit}, at most "
        f"{protocol['length']} tokens, {protocol['tokens']:,} tokens in all{also}"
    )
