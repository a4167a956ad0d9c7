"""What transformers alone makes of a folder: a clean load, the windows of a text, the logits.

Scripts that judge results import this and nothing of the package, so that nothing of it can help.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

CALIBRATION = "wikitext2/wiki.train.slice.raw"
JUDGED = {
    "wikitext2": "wikitext2/wiki.test.raw",
    "c4": "c4/c4_demo.jsonl",
    "tinystories": "tinystories/tinystories_clean.json",
}
CHARACTERS = 8  # of a token: more than any of these texts has, so that not all of them is encoded


def load(folder: Path) -> PreTrainedModel:
    """The model in float32; a sentence where any tensor is missing, left over or of another shape."""
    try:
        config = json.loads((folder / "config.json").read_text())
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code="auto_map" in config,  # blocks with widths of their own bring a class
        )
    except (OSError, RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise SystemExit(
            f"transformers does not load {folder}: {told[:300]}; make it again."
        ) from None
    wrong = {what: sorted(map(str, names)) for what, names in loading.items() if names}
    if wrong:
        told = "; ".join(f"{len(n)} {w.replace('_', ' ')}, {n[0]} first" for w, n in wrong.items())
        raise SystemExit(
            f"{folder} does not load cleanly ({told}); a result like this is not judged."
        )
    return model.eval()


def read(file: Path) -> str:
    """A text; of a list of documents, all of them with an empty line between."""
    content = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        return "\n\n".join(json.loads(content))
    if file.suffix == ".jsonl":
        return "\n\n".join(json.loads(line)["text"] for line in content.splitlines() if line)
    return content


def windows(folder: Path, file: Path, count: int, length: int) -> torch.Tensor:
    """The first windows of so many tokens, one after another, as the tokenizer of a folder has them."""
    text = read(file)[: count * length * CHARACTERS]
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[0]
    if len(ids) < count * length:
        raise SystemExit(
            f"{file} has {len(ids):,} tokens, too few for {count} windows of {length}; ask for fewer."
        )
    return ids[: count * length].view(count, length)


def logits_of(model: PreTrainedModel, rows: torch.Tensor, batch: int = 1) -> Iterator[torch.Tensor]:
    """Logits [windows, tokens, vocabulary] of a few windows at a time."""
    with torch.inference_mode():
        for part in rows.split(batch):
            yield model(part, use_cache=False).logits
