"""Proof that a written checkpoint works, in a fresh process and with plain transformers.

    python -m compressor.verification.child DIR [SOURCE | EXPECTED] [--device cuda:1] [+writes]

loads DIR with `AutoModelForCausalLM.from_pretrained`, or `AutoModelForImageTextToText`'s, running code
of DIR only where it is this package's own (`model/per_layer.py`), accepts no missing, unexpected or
mismatched tensor, and compares the logits of fixed prompts with those of the folder SOURCE whose
removed units are masked (loaded by its own class too; if it is quantised, as it is read here), or with
those in the file EXPECTED. Tensors that a repair changed are no longer the source's: their bytes must
have the digest that the repair recorded, and the masked source computes with them in the place of its
own. Of a sparse folder the zeros are counted. `+writes` has it write some tokens as its users do. All
are computed in float32, a few rows of a weight being widened at a time and their pages dropped after
use, so a model larger than the memory can be verified. On a GPU the whole model lies there as it is
stored; one that it does not hold is verified on the CPU, and the report has a `note` of that.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from compressor.errors import InputError, MachineError, VerificationError, as_error
from compressor.model.checkpoint import Checkpoint
from compressor.model.exact_logits import logits, stored_rows
from compressor.model.families import FAMILIES
from compressor.model.fewer_blocks import without
from compressor.model.fewer_channels import narrower
from compressor.model.loading import (
    blocks_of,
    built,
    check_device,
    load,
    positions_of,
    prompt_ids,
)
from compressor.model.memory import give_back, is_full
from compressor.model.stream import BlockStream
from compressor.planning.plan import Plan
from compressor.quantization.dense import open_source
from compressor.quantization.reading import PackedCheckpoint
from compressor.text.tokenizer import PROMPTS, check_vocabulary
from compressor.verification.contents import check_packed, check_sparse, rows_of, stay_packed
from compressor.verification.masked import masked_plan
from compressor.writing.record import read_record

TOLERANCE = 1e-3  # of the logits' standard deviation
GENERATES, WRITTEN = "+writes", 4  # tokens
TOLD = "verified"  # the word before how far a verification is
Progress = Callable[[int, int], None]


def tell(done: int, total: int) -> None:
    """How far the verification is, for the process that waits for it."""
    print(TOLD, done, total, file=sys.stderr, flush=True)


class Passed:
    """Counts the blocks that prompts have passed, in one model or two."""

    def __init__(self, progress: Progress, models: int):
        self.progress, self.models, self.done = progress, models, 0

    @contextmanager
    def of(self, model):
        """While open, the blocks of this model count."""
        blocks = blocks_of(model, FAMILIES.get(model.config.model_type))
        total = self.models * len(PROMPTS) * len(blocks)

        def count(*_) -> None:
            self.done += 1
            self.progress(self.done, total)

        with ExitStack() as hooks:
            for block in blocks:
                hooks.enter_context(block.register_forward_hook(count))
            yield


def verify_here(
    folder: Path,
    source: Path | None = None,
    expected: Path | None = None,
    progress: Progress = lambda done, total: None,
    generates: bool = False,
    device: str = "cpu",
) -> dict:
    """The same in this process: loads, and computes what the plan says."""
    quantization = read_record(folder).get("quantization")
    if quantization is not None:
        check_packed(folder, quantization)
    model, tokenizer = load(folder)
    check_vocabulary(tokenizer, folder, model.get_input_embeddings().num_embeddings)
    report = {"folder": str(folder), "class": type(model).__name__, "loads": True, "error": None}
    report["parameters"] = model.num_parameters()
    unpack = stored_rows
    if quantization is not None:
        packed = PackedCheckpoint(folder)
        report["parameters"] = packed.parameters
        unpack = partial(rows_of, packed.packing)
    prompts = prompt_ids(tokenizer, positions_of(model.config))
    sparsity = read_record(folder).get("sparsity")
    masked = expected is None and source is not None and sparsity is None
    passed = Passed(progress, 1 + masked)
    stay_packed(model)
    model = model.to(device)
    with passed.of(model):
        ours = [logits(model, ids.to(device), unpack).cpu() for ids in prompts]
    if not all(torch.isfinite(x).all() for x in ours):
        raise VerificationError(f"{folder} computes logits that are not finite.")
    if generates:
        report["generated"] = generated(model, prompts[0].to(device), folder)
    del model
    tolerance = TOLERANCE
    if sparsity is not None and quantization is None:
        report["zeros"] = check_sparse(folder, sparsity, source)
    if expected is not None:
        known, whose = load_file(expected), "model's in memory"
        theirs = [known[str(i)] for i in range(len(prompts))]
        tolerance = known.get("tolerance", torch.tensor(TOLERANCE)).item()
    elif masked:
        theirs, whose = masked_logits(source, folder, prompts, passed, device), "masked source's"
    else:
        return report
    worst = max(((a - b).abs().max() / b.std()).item() for a, b in zip(ours, theirs, strict=True))
    if math.isnan(worst):
        raise VerificationError(
            f"All logits of {folder} and of the {whose} are alike, so nothing can be compared; look at "
            "the source's weights."
        )
    report["logits_difference"] = worst
    if not worst <= tolerance:
        raise VerificationError(
            f"The logits of {folder} differ from the {whose} by {worst:.2e} of their "
            f"standard deviation; at most {tolerance:.0e} is rounding."
        )
    return report


def generated(model, ids: torch.Tensor, folder: Path) -> list[int]:
    """Tokens that the model writes after the beginning of a prompt, with its cache."""
    ids = ids[:, : ids.shape[1] // 2]  # there may be no position behind its end
    count = min(WRITTEN, ids.shape[1])
    whole = model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False)
    new = whole[0, ids.shape[1] :].tolist()
    if len(new) != count:
        raise VerificationError(f"{folder} writes {len(new)} tokens where {count} were asked for.")
    return new


def masked_logits(
    source: Path, folder: Path, prompts: list[torch.Tensor], passed: Passed, device: str
) -> list[torch.Tensor]:
    """The prompts' logits of the source without the units that `folder` says were removed."""
    checkpoint = open_source(source)
    if checkpoint.streamed:
        masked, tokenizer = None, checkpoint.tokenizer()
    elif checkpoint.coded or checkpoint.dequantised:
        masked, tokenizer = built(checkpoint), checkpoint.tokenizer()
    else:
        masked, tokenizer = load(source, checkpoint.dtype)
    for expected, ids in zip(prompt_ids(tokenizer, checkpoint.positions), prompts, strict=True):
        if not torch.equal(expected, ids):
            raise VerificationError(f"The tokenizer in {folder} differs from the source's.")
    record = read_record(folder)
    try:
        planned = Plan(record["plan"]["blocks"], record["plan"].get("about", {}))
        lost = {name: planned.about.get(name) for name in ("dropped", "hidden")}
        seen = without(planned.seen(checkpoint), planned.dropped)
        Plan(planned.blocks, lost).check(narrower(seen, planned.channels))
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise VerificationError(
            f"The plan in {folder / 'compression.json'} is not one for {source}: {error} Is that the "
            "model it was cut from?"
        ) from error
    if masked is None:  # block by block, both prompts at once: its shards come one at a time
        stream = BlockStream(checkpoint, device, torch.float32)
        with masked_plan(stream.model, checkpoint, Checkpoint(folder), record):
            return [found[0].cpu() for found in stream.logits(prompts)]
    masked = masked.to(device)
    plan = masked_plan(masked, checkpoint, Checkpoint(folder), record)
    with plan, passed.of(masked):
        return [logits(masked, ids.to(device)).cpu() for ids in prompts]


def verify_on(
    device: str,
    folder: Path,
    against: dict[str, Path],
    progress: Progress = tell,
    generates: bool = False,
) -> dict:
    """`verify_here` on a GPU; on the CPU, with a `note`, where the GPU has not the memory or does not
    take a second process beside the job's.
    """
    torch.set_float32_matmul_precision("highest")  # whatever the environment says
    try:
        check_device(device)
        return verify_here(folder, **against, progress=progress, generates=generates, device=device)
    except MachineError as refused:
        why = str(refused)
    except RuntimeError as error:
        if not is_full(error):
            raise
        why = f"{device} does not hold the model: {error}"
    give_back(device)  # the error's frames, which held the model, are gone by now
    report = verify_here(folder, **against, progress=progress, generates=generates, device="cpu")
    why = why.partition("\n")[0].partition(". If ")[0].rstrip(".")  # more is for programmers
    return report | {"note": f"It ran on the CPU. {why}."}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prefix_chars="-+")
    parser.add_argument("folder", type=Path)
    parser.add_argument("against", type=Path, nargs="?")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(GENERATES, dest="generates", action="store_true")
    asked = parser.parse_args(arguments)
    path, against = asked.against, {}
    if path is not None:
        against["expected" if path.is_file() else "source"] = path
    try:
        if asked.device == "cpu":
            report = verify_here(
                asked.folder, **against, progress=tell, generates=asked.generates, device="cpu"
            )
        else:
            report = verify_on(asked.device, asked.folder, against, generates=asked.generates)
    except BaseException as error:  # what Rust calls a panic is no Exception
        if (known := as_error(error)) is None:
            raise
        report = {"error": str(known), "of_the_machine": isinstance(known, MachineError)}
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
