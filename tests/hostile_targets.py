"""What is read of files that anybody may have made: a target for every kind of file.

Each reads one file of a folder that is sound besides, with the functions that commands read it with.
`tests/hostile` gives them what hypothesis makes, and `make fuzz` what a coverage-guided search finds.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import torch
from safetensors.torch import save

from compressor import __version__
from compressor.analysis.doctor import examine, pickles
from compressor.analysis.doctor.fault import Patient
from compressor.analysis.doctor.files import gathered, unindexed
from compressor.analysis.inspection.disagreements import disagreements, ids_outside
from compressor.analysis.inspection.folder import open_folder
from compressor.config.recovery import read_details
from compressor.config.target import targets_of
from compressor.job.journal import NAME, VERSION, Journal
from compressor.job.keeping import described
from compressor.job.result import Done
from compressor.model.checkpoint import Checkpoint
from compressor.model.configs import read_as_given
from compressor.model.fewer_blocks import without
from compressor.model.fewer_channels import narrower
from compressor.model.tensors import DTYPES, INDEX, PACKED_DTYPES, SINGLE, read_header, read_tensors
from compressor.model.weight_files import check_index, weight_files
from compressor.planning.allocation import allocate
from compressor.planning.budget import table_of
from compressor.planning.plan import Plan
from compressor.recovery.data import rows_of
from compressor.recovery.instructions import conversation
from compressor.scoring.scores import Scores
from compressor.text.texts import read_text
from compressor.text.tokenizer import FAST, open_tokenizer
from compressor.verification.verify import check_is_a_cut
from compressor.writing.record import RECORD, read_record

SHARD, OTHER = "a.safetensors", "b.safetensors"
BLOCKS = 3  # of the sound model
Read = Callable[[Path], object]


@dataclass(frozen=True)
class Target:
    """file: the one that is hostile. read: of the folder. seeds: what it holds where all is well.

    model: whether the folder is to hold a whole model, and not this file alone.
    """

    name: str
    file: str
    read: Read
    seeds: tuple[bytes, ...]
    model: bool = False


# -- a folder's own files ---------------------------------------------------------------------------


def header(folder: Path) -> None:
    entries = read_header(folder / SINGLE, DTYPES | PACKED_DTYPES)
    read_tensors(entries, entries)


def index(folder: Path) -> None:
    for name in (SHARD, OTHER):
        if not (folder / name).exists():
            (folder / name).write_bytes(save({name[0]: torch.zeros(1)}))
    patient = Patient(folder, {})
    with read_as_given():
        if unindexed(patient):
            gathered(patient)
    files = weight_files(folder, {})
    held = {file: [*read_header(folder / file)] for file in files}
    check_index(folder, held, ())


def looked_at(folder: Path) -> None:
    """As `inspect` does, but for the loaders that it asks."""
    with read_as_given():
        found = open_folder(folder)
        disagreements(found, found.widths())
        ids_outside(found.config)


def tokenizer(folder: Path) -> None:
    open_tokenizer(folder, False, 120)


def pickle(folder: Path) -> None:
    pickles.state_dict(folder / pickles.WHOLE)


# -- what jobs leave and are given ------------------------------------------------------------------


@cache
def sound(folder: Path) -> Checkpoint:
    """The model in the folder beside, which is read once."""
    return Checkpoint(folder.with_name("sound"))


def plan(folder: Path) -> None:
    """As `cut` does before it reads a text."""
    read = Plan.load(folder / "plan.json")
    source = narrower(without(read.seen(sound(folder)), read.dropped), read.channels)
    read.check(source)


def scores(folder: Path) -> None:
    read = Scores.load(folder / "scores.safetensors")
    allocate(read, read.seen(sound(folder)), targets_of(0.8)[0])


def journal(folder: Path) -> None:
    described(folder)
    read = Journal.resume(folder)
    read.agree("settings", {"--keep": 0.5})
    Done.of(read.get("out"))


def record(folder: Path) -> None:
    read_record(folder)
    check_is_a_cut(folder)


def table(folder: Path) -> None:
    table_of(folder / "costs.json", sound(folder))


def details(folder: Path) -> None:
    read_details(folder / "recovery.yaml")


def text(name: str) -> Read:
    def read(folder: Path) -> None:
        read_text(str(folder / name)).sha256  # noqa: B018  # it encodes the strings

    return read


class Templated:
    """A tokenizer that has a chat template."""

    chat_template = "role: content"

    def apply_chat_template(self, messages, tokenize=False, add_generation_prompt=False) -> str:
        said = "".join(f"{each['role']}: {each['content']}\n" for each in messages)
        return said + "assistant: " * add_generation_prompt


def rows(folder: Path) -> None:
    read, _ = rows_of(str(folder / "rows.jsonl"))
    for where, row in read or ():
        conversation(row, Templated(), where)


# -- all of them ------------------------------------------------------------------------------------


def as_json(*values) -> tuple[bytes, ...]:
    return tuple(json.dumps(value).encode() for value in values)


def saved(**tensors: torch.Tensor) -> bytes:
    return save(tensors, {"format": "pt"})


def pickled(value) -> bytes:
    stream = BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def of_scores() -> bytes:
    """A file of scores of the sound model."""
    blocks = [{"attention": torch.rand(4), "ffn": torch.rand(48)} for _ in range(BLOCKS)]
    tensors = {f"{b}.{group}": block[group] for b, block in enumerate(blocks) for group in block}
    about = {"method": "llm_bip", "source": "sound", "experts": None}
    return save(tensors, {"scores": json.dumps({"about": about, "parts": [], "rates": []})})


BLOCK = {"attention": [0, 2], "ffn": [1, 3, 5]}
COSTS = {"attention": {"1": 0.2, "4": 0.7}, "ffn": {"8": 0.1, "48": 0.9}, "other": 1.5}
JOURNAL = {"settings": {"--keep": 0.5}, "scored": True, "before": {"perplexity": 9.5}, "out": None}
JOURNAL |= {VERSION: __version__}
CUT = {"plan": {"blocks": [BLOCK], "about": {}}, "recovery": {"kept": False}, "layout": "uniform"}
ROWS = [
    {"prompt": "a", "completion": "b"},
    {"instruction": "a", "output": "b", "input": None},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
]
PLAN = {"blocks": [BLOCK] * BLOCKS, "about": {"dropped": [], "scores": {"experts": None}}}

QUICK = (  # a fraction of a millisecond each
    Target("header", SINGLE, header, (saved(a=torch.zeros(2, 2), b=torch.ones(3).half()),)),
    Target(
        "index",
        INDEX,
        index,
        as_json({"metadata": {"total_size": 8}, "weight_map": {"a": SHARD, "b": OTHER}}),
    ),
    Target("plan", "plan.json", plan, as_json(PLAN, {"plan": PLAN})),
    Target("scores", "scores.safetensors", scores, (of_scores(),)),
    Target("journal", NAME, journal, as_json(JOURNAL)),
    Target("record", RECORD, record, as_json(CUT)),
    Target("table", "costs.json", table, as_json(COSTS)),
    Target("details", "recovery.yaml", details, (b"rank: 16\nlearning_rate: 1e-4\n", b"{rank: 4}")),
    Target("text", "text.txt", text("text.txt"), (b"A text of a line.\n", "\ufeffé".encode())),
    Target("list", "text.json", text("text.json"), as_json(["a", {"text": "b \ud800"}])),
    Target("lines", "text.jsonl", text("text.jsonl"), (b'"a"\n\n{"text": "b"}\r\n',)),
    Target("rows", "rows.jsonl", rows, (b"\n".join(as_json(*ROWS[:2])), *as_json(ROWS[2]))),
    Target("pickle", pickles.WHOLE, pickle, (pickled({"a": torch.zeros(2)}),)),
)
WHOLE = (  # milliseconds: all that a command reads of a folder before it works
    Target("config", "config.json", lambda folder: Checkpoint(folder), (), True),
    Target("doctor", "config.json", lambda folder: examine(folder), (), True),
    Target("inspect", "config.json", looked_at, (), True),
    Target("tokenizer", FAST, tokenizer, (), True),
    Target("tokenizer settings", "tokenizer_config.json", tokenizer, (), True),
)
TARGETS = {target.name: target for target in (*QUICK, *WHOLE)}
