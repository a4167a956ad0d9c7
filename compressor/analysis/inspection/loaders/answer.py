"""What is asked of every loader, and what all of them look at."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from compressor.analysis.inspection.folder import Folder
from compressor.model.widths import BlockWidths

if TYPE_CHECKING:  # it takes seconds to import
    from transformers import PreTrainedTokenizerBase

UNKNOWN = "the widths are not known"
RAN, RULES = "ran", "its rules"


@dataclass(frozen=True)
class Answer:
    """Does `target` take the folder: yes, no, or not known here (None); what decides; how it is known.

    how: `ran` (it loaded the folder here), `its rules, seen in VERSION` (they were compared with what
    that version did with folders of this package and broken ones) or `its rules`.
    """

    target: str
    loads: bool | None
    because: str
    how: str = RULES


@dataclass(frozen=True)
class Loading:
    """What the installed transformers made of a folder.

    refused: what its config, its class or its files raise. tensors: which are missing, left over or of
    another shape; of a config that is refused, by the nearest that is not. tokenizer: what it loaded.
    """

    refused: str | None
    tensors: str | None
    padding: bool = False  # whether the padding id alone was refused
    config_refused: bool = False  # whether it was the config, of which no model was made
    tokenizer: "PreTrainedTokenizerBase | None" = None
    no_tokenizer: str | None = None


@dataclass(frozen=True)
class Facts:
    """A folder, its widths, where config and tensors disagree, and what the installed transformers said.

    coded: the same with the folder's own code, where that is this package's. differing_head: whether the
    files hold another head than the embedding that the config ties it to.
    """

    folder: Folder
    widths: list[BlockWidths] | None
    wrong: list[str]
    here: Loading
    coded: Loading | None = None
    differing_head: bool = False

    @property
    def architecture(self) -> str | None:
        """The class that the config names first, by which other loaders look for theirs."""
        named = self.folder.written.get("architectures")
        return named[0] if isinstance(named, list) and named else None


Check = Callable[[Facts], str | None]


def first_of(checks: Iterable[Check], facts: Facts) -> str | None:
    """What the first check that finds something says."""
    return next((reason for check in checks if (reason := check(facts))), None)


def files(facts: Facts) -> str | None:
    return facts.folder.ambiguous


def tensors(facts: Facts) -> str | None:
    return facts.here.tensors


def no_tokenizer(facts: Facts) -> str | None:
    """The others load the tokenizer as transformers does."""
    if facts.here.tokenizer is not None:
        return None
    return f"tokenizer: {facts.here.no_tokenizer}"


def filled(widths: list[BlockWidths]) -> list[BlockWidths]:
    """The widths of blocks of several kinds, each with those of another in the place of what it has of
    another kind: a config says one for all that have any.
    """
    if not widths:
        return []
    attending = next((block for block in widths if block.query), widths[0])
    fed = next((block for block in widths if block.ffn), widths[0])
    attention = {name: getattr(attending, name) for name in ("query", "key_value", "query_inputs")}
    ffn = {name: getattr(fed, name) for name in ("ffn", "ffn_inputs", "experts")}
    return [
        replace(block, **({} if block.query else attention), **({} if block.ffn else ffn))
        for block in widths
    ]


def distinct(widths: list[BlockWidths]) -> set[tuple]:
    """The shapes of the blocks' matrices, of blocks that differ in them."""
    return {tuple(block.matrices) for block in filled(widths)}


def different(widths: list[BlockWidths]) -> str | None:
    """What is wrong with blocks that differ, for loaders that know one width."""
    count = len(distinct(widths))
    if count <= 1:
        return None
    return f"the blocks have {count} different widths, and one config says one"
