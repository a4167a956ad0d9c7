"""What goes into a result beside its weights: tokenizer, chat templates, licences and other small data.

All of it is copied byte for byte. Subfolders go along if they are side data as a whole; those with other
weights, checkpoints of a training, logs or a version control's files stay behind, and are named.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from compressor.config.json_files import read_object
from compressor.model.per_layer import SHIPPED
from compressor.model.source import Source
from compressor.model.tensors import INDEX

# Weights in any other format would contradict the new ones; the card is written anew.
WEIGHTS = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".distcp", ".gguf", ".ggml", ".msgpack"),
    *(".h5", ".onnx", ".onnx_data", ".ot", ".npz", ".tflite", ".nemo"),
}
WRITTEN_ANEW = ("config.json", "README.md", *SHIPPED)
MODELS = {"config.json", "params.json", "trainer_state.json"}  # what a model's folder has
LOGS = "events.out.tfevents"  # of TensorBoard
MOST_BYTES = 128 << 20  # a file or a subfolder of more is no side data


def copy_side_files(checkpoint: Source, folder: Path) -> None:
    """Copy what goes along into the new folder.

    Of a model that runs by its folder's code without that, and without what names a class in it.
    """
    if checkpoint.path is None:  # a model in memory has none
        return
    for file in side_files(checkpoint):
        copied = folder / file.relative_to(checkpoint.path)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copied)
    if checkpoint.coded:
        file = folder / "tokenizer_config.json"
        config = read_object(file) if file.exists() else {}
        config.pop("auto_map", None)
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def side_files(checkpoint: Source) -> Iterator[Path]:
    """The files that go along."""
    for path in sorted(checkpoint.path.iterdir()):
        if path.is_dir() and not reason(path):
            yield from (file for file in sorted(path.rglob("*")) if file.is_file())
        own_code = checkpoint.coded and path.suffix == ".py"
        if path.is_file() and not (reason(path) or path.name in WRITTEN_ANEW or own_code):
            yield path


def left_behind(checkpoint: Source) -> list[str]:
    """A sentence about files and subfolders that do not go along, but for the weights that were read."""
    read = {entry.file for entry in checkpoint.whole.tensors.values()}
    read.add(checkpoint.path / INDEX)
    paths = [p for p in sorted(checkpoint.path.iterdir()) if p not in read]
    names = [f"{p.name}{'/' * p.is_dir()} ({why})" for p in paths if (why := reason(p))]
    if not names:
        return []
    return [
        f"The result has no copy of what else is in {checkpoint.path}: {', '.join(names)}. Copy by "
        "hand what belongs to it."
    ]


def reason(path: Path) -> str | None:
    """Why a file or a subfolder does not go along."""
    if path.is_symlink() and path.is_file() and not leads_inside(path, path.parent):
        return "a link out of the folder"
    if path.is_file():
        if is_weights(path):
            return "weights"
        return "large" if path.stat().st_size > MOST_BYTES else None
    if path.name.startswith("."):
        return "hidden"
    if path.is_symlink():
        return "a link"
    size = 0
    for file in path.rglob("*"):
        if file.is_symlink() and not leads_inside(file, path.parent):
            return "links out of it"
        if file.is_file():
            if is_weights(file):
                return "weights"
            if file.name in MODELS:
                return "another model"
            if file.name.startswith(LOGS):
                return "logs"
            size += file.stat().st_size
        if size > MOST_BYTES:
            return "large"
    return None


def is_weights(file: Path) -> bool:
    """Weights, or an index of some (`model.safetensors.index.json`, with a variant's name in it too)."""
    return file.suffix in WEIGHTS or (file.suffix == ".json" and ".index" in file.suffixes)


def leads_inside(link: Path, folder: Path) -> bool:
    """Whether a link's file is in the folder, or where the hub's cache keeps the folder's files."""
    target, top = link.resolve(), folder.resolve()
    blobs = top.parent.parent / "blobs"
    cached = top.parent.name == "snapshots" and target.parent == blobs
    return target.is_file() and (cached or top in target.parents)
