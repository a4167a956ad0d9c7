"""A model as a file of another program."""

from pathlib import Path

from compressor.front.jobs import as_folder
from compressor.front.models import Model, open_source
from compressor.writing.gguf import export as write
from compressor.writing.locking import locked


def export(model: Model, out: str | Path, kind: str = "f16", *, tokenizer=None) -> Path:
    """The new file `out`, GGUF, which llama.cpp runs.

    kind: of the matrices: f32, f16, bf16 or q8_0. tokenizer: of a model in memory. `InputError` for a
    model or a tokenizer that llama.cpp would compute otherwise.
    """
    with locked(Path(out)), as_folder(model, tokenizer) as folder:
        write(open_source(folder), Path(out), kind)
    return Path(out)
