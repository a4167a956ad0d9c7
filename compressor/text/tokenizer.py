"""The tokenizer of a folder, and in a sentence why there is none."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from compressor.config.json_files import check_file
from compressor.errors import CompressorError, InputError, in_a_line

FAST = "tokenizer.json"
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
VOCABULARIES = (FAST, *SENTENCEPIECE, "vocab.json")
MERGES = "merges.txt"
MOST_BYTES = 128 << 20  # of each; no larger one goes along into a result, either
# What transformers needs to read a file of pieces, by the module and by the package to install.
PIECES = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
RANKS = {"tiktoken": "tiktoken"}
# What a model computes when it is verified, and what shows whether a tokenizer is the model's.
PROMPTS = (
    "Once upon a time there was a small house at the edge of a wood, and in it lived",
    "def first(values):\n    for value in values:\n        return value\n",
)


def open_tokenizer(path: Path, coded: bool, vocabulary: int):
    """The tokenizer in `path`; InputError if it cannot be read, or is of another model.

    coded: whether the folder runs by code of its own, which is not run. vocabulary: rows of the
    embedding.
    """
    check_files(path, coded)
    tokenizer = read_tokenizer(path, coded)
    with of_the_tokenizer(path):
        check_vocabulary(tokenizer, path, vocabulary)
    return tokenizer


def read_tokenizer(path: Path, coded: bool):
    """A folder's tokenizer; of a `coded` model, whose config transformers would run code to read, as
    tokenizer.json has it.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind = PreTrainedTokenizerFast if coded else AutoTokenizer
    with of_the_tokenizer(path), quiet():  # where it does not know the model type
        return kind.from_pretrained(path, trust_remote_code=False)


@contextmanager
def of_the_tokenizer(path: Path) -> Iterator[None]:
    """While open, whatever is raised is a sentence about the tokenizer."""
    try:
        yield
    except (CompressorError, MemoryError):
        raise
    except BaseException as error:
        # What is wrong inside of a library in Rust is no Exception, and is one all the same.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "trust_remote_code" in str(error):
            raise InputError(own_code(path)) from error
        raise InputError(
            f"The tokenizer in {path} ({shown(path)}) does not load: {in_a_line(error)}"
        ) from error


@contextmanager
def quiet():
    """Nothing but errors of transformers is shown while this is open."""
    from transformers import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def check_files(path: Path, coded: bool) -> None:
    """Refuse what is no whole tokenizer, or is read by packages that are not here."""
    if coded and not (path / FAST).exists():
        raise InputError(own_code(path))
    if not shown(path):
        raise InputError(
            f"{path} has no tokenizer (none of {', '.join(VOCABULARIES)}); put that of the "
            "original model beside the weights."
        )
    for name in (*VOCABULARIES, MERGES):
        if (path / name).exists():
            check_file(path / name, MOST_BYTES)
    if (path / FAST).exists():
        return
    for name in SENTENCEPIECE:
        if (path / name).exists() and (missing := lacking(path / name)):
            raise InputError(
                f"The tokenizer in {path} is {name} alone, and transformers reads it with "
                f"{' and '.join(missing)}: pip install {' '.join(missing)}; or put the model's {FAST} "
                "beside it."
            )
    if (path / "vocab.json").exists() and not (path / MERGES).exists():
        raise InputError(
            f"The tokenizer in {path} is half there: vocab.json without {MERGES}; put that of the "
            "original model beside it."
        )


def own_code(path: Path) -> str:
    return (
        f"The tokenizer in {path} is code of its own, which is not run; save it as {FAST} "
        "(transformers' PreTrainedTokenizerFast), put that beside the weights and take auto_map out of "
        "tokenizer_config.json."
    )


def shown(path: Path) -> str:
    """The files that hold a vocabulary."""
    return ", ".join(name for name in VOCABULARIES if (path / name).exists())


def lacking(file: Path) -> list[str]:
    """Packages to install before a vocabulary file can be read: tiktoken's are lines of text."""
    with file.open("rb") as stream:
        token, _, rank = stream.readline().strip().partition(b" ")
    modules = RANKS if token.isascii() and rank.isdigit() else PIECES
    return [package for module, package in modules.items() if not installed(module)]


def installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def check_vocabulary(tokenizer, path: Path, vocabulary: int) -> None:
    """Refuse a tokenizer without tokens, or with a BOS or EOS that the model has no embedding of."""
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise InputError(
            f"The tokenizer in {path} ({shown(path)}) has no tokens but {len(tokenizer)} special ones; "
            "put that of the original model beside the weights."
        )
    for name in ("bos_token", "eos_token"):
        token, number = getattr(tokenizer, name), getattr(tokenizer, f"{name}_id")
        if number is not None and number >= vocabulary:
            raise InputError(
                f"The tokenizer in {path} gives its {name} {token!r} the id {number}, and the embedding "
                f"has {vocabulary} rows. It is of another model, or its config names a token that its "
                "vocabulary lacks; put that of the original model beside the weights."
            )
    largest = max(max(tokenizer(prompt)["input_ids"], default=0) for prompt in PROMPTS)
    if largest >= vocabulary:
        raise InputError(
            f"The tokenizer in {path} gives {tokenizer.convert_ids_to_tokens(largest)!r} the id "
            f"{largest}, and the embedding has {vocabulary} rows: it is of another model; put that of "
            "the original model beside the weights."
        )
