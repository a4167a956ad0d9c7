"""Which files of a folder each loader takes the weights from, as its source says.

They differ where a folder holds weights twice: an index beside a single file, another precision, what a
second save left, an adapter. transformers takes `model.safetensors`, then the index, then pickles, and
adds an adapter that lies beside them; vLLM and llama.cpp's converter take what the index names, and
without one every file that looks like weights.
"""

from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path

from compressor.model.tensors import INDEX, SINGLE
from compressor.model.weight_files import placed_by

PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ADAPTER = "adapter_config.json"
CONSOLIDATED = "consolidated*.safetensors"
TRAINING = {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"}

Indexed = Callable[[str], list[str]]  # the files that an index names


def by_transformers(names: Iterable[str], config: dict, indexed: Indexed) -> list[str]:
    """5.23 and 4.57.6."""
    present = [name for name in (SINGLE, INDEX, PICKLE, PICKLE_INDEX) if name in names]
    chosen = config.get("transformers_weights") or next(iter(present), None)
    if chosen is None:
        return []
    return indexed(chosen) if chosen.endswith(".index.json") else [chosen]


def by_vllm(names: Iterable[str], config: dict, indexed: Indexed) -> list[str]:
    """0.32."""
    if matched := matching(names, CONSOLIDATED):
        return matched
    if matched := matching(names, "*.safetensors"):
        return [name for name in indexed(INDEX) if name in matched] if INDEX in names else matched
    pickles = matching(names, "*.bin") or matching(names, "*.pt")
    return [name for name in pickles if name not in TRAINING]


def by_llama_cpp(names: Iterable[str], config: dict, indexed: Indexed) -> list[str]:
    """Its converter, of 2026."""
    matched, index = matching(names, "model*.safetensors"), INDEX
    if not matched:
        matched, index = matching(names, "pytorch_model*.bin"), PICKLE_INDEX
    return indexed(index) if index in names else matched


TAKEN_BY = {"transformers": by_transformers, "vLLM": by_vllm, "llama.cpp": by_llama_cpp}


def matching(names: Iterable[str], pattern: str) -> list[str]:
    return sorted(name for name in names if fnmatch(name, pattern))


def taken(folder: Path, config: dict) -> dict[str, list[str]]:
    """The names of the files that each loader takes, by the loader."""
    names = {file.name for file in folder.iterdir() if file.is_file()}

    def indexed(index: str) -> list[str]:
        return sorted({*placed_by(folder / index).values()})

    return {loader: take(names, config, indexed) for loader, take in TAKEN_BY.items()}


def ambiguity(folder: Path, config: dict) -> str | None:
    """What loaders take differently, as a sentence that names the files; None where they agree."""
    if (folder / ADAPTER).exists():
        return (
            f"{ADAPTER} lies beside the weights: where peft is installed transformers adds the adapter "
            "to them, and other loaders do not. Merge it, or take its files away."
        )
    by_loader = taken(folder, config)
    if len({tuple(files) for files in by_loader.values()}) == 1:
        return None
    shown = "; ".join(f"{loader} takes {listed(files)}" for loader, files in by_loader.items())
    return f"Loaders take different files: {shown}. Take away those that are not meant."


def listed(files: list[str]) -> str:
    if not files:
        return "none"
    few = f"{files[0]} to {files[-1]}" if len(files) > 2 else " and ".join(files)
    return f"{few} ({len(files)} files)" if len(files) > 2 else few
