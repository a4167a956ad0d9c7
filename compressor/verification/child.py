"""Proof that a written checkpoint works, in a fresh process and with plain transformers.

    python -m compressor.verification.child DIR [SOURCE | EXPECTED]

loads DIR with `AutoModelForCausalLM.from_pretrained`, running code of DIR only where it is this
package's own (`model/per_layer.py`), accepts no missing, unexpected or mismatched tensor, and
compares the logits of fixed prompts with those of the folder SOURCE whose removed units
are masked, or with those in the file EXPECTED. Tensors that a repair changed are no longer the
source's: their bytes must have the digest that the repair recorded, and the masked source computes
with them in the place of its own. Of a sparse folder the zeros are counted. All are computed in
float32, a few rows of a weight being widened at a time and their pages dropped after use, so a model
larger than the memory can be verified.
"""

import json
import math
import sys
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file

from compressor.errors import CompressorError, InputError, VerificationError
from compressor.model.checkpoint import Checkpoint
from compressor.model.exact_logits import logits, stored_rows
from compressor.model.families import FAMILIES
from compressor.model.fewer_blocks import without
from compressor.model.loading import load, positions_of, prompt_ids
from compressor.model.per_layer import model_of
from compressor.planning.plan import Plan
from compressor.quantization.reading import PackedCheckpoint
from compressor.text.tokenizer import PROMPTS, check_vocabulary
from compressor.verification.contents import check_packed, check_sparse, rows_of, stay_packed
from compressor.verification.masked import masked_plan
from compressor.writing.record import read_record

TOLERANCE = 1e-3  # of the logits' standard deviation
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
        family = FAMILIES.get(model.config.model_type)
        blocks = model.get_submodule(family.layers) if family else []
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
    with passed.of(model):
        stay_packed(model)
        ours = [logits(model, ids, unpack) for ids in prompts]
    if not all(torch.isfinite(x).all() for x in ours):
        raise VerificationError(f"{folder} computes logits that are not finite.")
    del model
    tolerance = TOLERANCE
    if sparsity is not None and quantization is None:
        report["zeros"] = check_sparse(folder, sparsity, source)
    if expected is not None:
        known, whose = load_file(expected), "model's in memory"
        theirs = [known[str(i)] for i in range(len(prompts))]
        tolerance = known.get("tolerance", torch.tensor(TOLERANCE)).item()
    elif masked:
        theirs, whose = masked_logits(source, folder, prompts, passed), "masked source's"
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


def masked_logits(
    source: Path, folder: Path, prompts: list[torch.Tensor], passed: Passed
) -> list[torch.Tensor]:
    """The prompts' logits of the source without the units that `folder` says were removed."""
    checkpoint = Checkpoint(source)
    if checkpoint.coded:
        masked, tokenizer = built(checkpoint), checkpoint.tokenizer()
    else:
        masked, tokenizer = load(source, checkpoint.dtype)
    for expected, ids in zip(prompt_ids(tokenizer, checkpoint.positions), prompts, strict=True):
        if not torch.equal(expected, ids):
            raise VerificationError(f"The tokenizer in {folder} differs from the source's.")
    record = read_record(folder)
    try:
        planned = Plan(record["plan"]["blocks"], record["plan"].get("about", {}))
        Plan(planned.blocks, {"dropped": planned.dropped}).check(
            without(checkpoint, planned.dropped)
        )
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise VerificationError(
            f"The plan in {folder / 'compression.json'} is not one for {source}: {error} Is that the "
            "model it was cut from?"
        ) from error
    plan = masked_plan(masked, checkpoint, Checkpoint(folder), record)
    with plan, passed.of(masked):
        return [logits(masked, ids) for ids in prompts]


def built(checkpoint: Checkpoint):
    """The model of a folder whose code is not run, from what is read of it."""
    config = checkpoint.model_config()
    with init_empty_weights(include_buffers=False):
        model = model_of(config, checkpoint.family, checkpoint.dtype)
    tensors = checkpoint.read(checkpoint.tensors)
    if checkpoint.tied:
        tensors[checkpoint.family.head] = tensors[checkpoint.family.embedding]
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def main(arguments: list[str]) -> None:
    try:
        folder, *references = map(Path, arguments)
        against = {"expected" if path.is_file() else "source": path for path in references}
        report = verify_here(folder, **against, progress=tell)
    except CompressorError as error:
        report = {"error": str(error)}
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
