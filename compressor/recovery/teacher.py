"""The source's distributions over the next token, computed once for all sequences and kept in files.

The source streams block by block, so distillation never holds it in memory: two of its blocks, its
embedding and head, and the activations of all sequences (in files where memory is short). On disk
stay 8 bytes x (k + 1) a counted token.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from compressor.model.disk import check_space
from compressor.model.pauses import Pauses
from compressor.model.stream import BlockStream
from compressor.recovery.data import Example
from compressor.recovery.losses import Soft, padded
from compressor.text.tokens import of_similar_length

TOKENS = 1024  # a batch: its logits are 128 MB in float32 at a vocabulary of 32,000


class Teacher:
    """Reads what `teach` wrote; `soft(i)` is the source's distribution of example i."""

    def __init__(self, folder: Path):
        self.files: dict[int, Path] = {}
        for file in sorted(folder.iterdir()):
            with safe_open(file, framework="pt") as handle:
                names = handle.keys()
            self.files |= {int(name.partition(".")[0]): file for name in names}

    def soft(self, indices: Sequence[int]) -> Soft:
        """The distributions of these examples, one behind the other."""
        tokens, logs = [], []
        for i in indices:
            with safe_open(self.files[i], framework="pt") as handle:
                tokens.append(handle.get_tensor(f"{i}.tokens"))
                logs.append(handle.get_tensor(f"{i}.logs"))
        return Soft(torch.cat(tokens), torch.cat(logs))


def teach(
    stream: BlockStream,
    examples: Sequence[Example],
    top: int,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Teacher:
    """The source's `top` likeliest next tokens at every counted position of the examples.

    `folder` appears when it is complete; one that is there is read and not computed again.
    """
    if folder.exists():
        return Teacher(folder)
    counted = sum(int(e.predicted.sum()) for e in examples)
    check_space(folder.parent, 8 * (top + 1) * counted)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    batches = of_similar_length([e.ids for e in examples], TOKENS)
    ids = [padded([examples[i] for i in batch], torch.device("cpu"))[0] for batch in batches]
    pauses = Pauses(folder.with_name(f"{folder.name}.paused"))
    outputs = stream.logits(ids, pauses=pauses)
    for number, (batch, logits) in enumerate(zip(batches, outputs, strict=True)):
        tensors: dict[str, torch.Tensor] = {}
        for i, row in zip(batch, logits, strict=True):
            predicted = examples[i].predicted
            soft = Soft.of(row[: len(predicted)][predicted.to(row.device)], top).to("cpu")
            tensors |= {f"{i}.tokens": soft.tokens, f"{i}.logs": soft.logs}
        save_file(tensors, unfinished / f"{number:06d}.safetensors")
        progress(number + 1, len(batches))
    unfinished.rename(folder)
    pauses.over()
    return Teacher(folder)
