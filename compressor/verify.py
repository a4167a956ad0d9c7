"""Proof that a written checkpoint works, in a fresh process and with plain transformers.

    python -m compressor.verify DIR [SOURCE | EXPECTED]

loads DIR with `AutoModelForCausalLM.from_pretrained`, running code of DIR only where it is this
package's own (`per_layer.py`), accepts no missing, unexpected or mismatched
tensor, and compares the logits of fixed prompts with those of the folder SOURCE whose removed units
are masked, or with those in the file EXPECTED. Tensors that a repair changed are no longer the
source's: their bytes must have the digest that the repair recorded, and the masked source computes
with them in the place of its own. Of a sparse folder the zeros are counted. All are computed in
float32, a few rows of a weight being widened at a time and their pages dropped after use, so a model
larger than the memory can be verified.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file

from compressor.blocks import make_linear
from compressor.checkpoint import Checkpoint
from compressor.configs import read_object
from compressor.errors import CompressorError, InputError, MachineError, VerificationError
from compressor.families import FAMILIES
from compressor.masking import masked_plan
from compressor.memory import drop_pages
from compressor.per_layer import may_run_code, model_of
from compressor.plan import Plan
from compressor.quantization.reading import PackedCheckpoint
from compressor.quantization.verification import check_packed, rows_of, stay_packed
from compressor.sparse.verification import check_sparse
from compressor.tokenizer import PROMPTS, check_vocabulary, read_tokenizer
from compressor.weight_files import weight_files

TOLERANCE = 1e-3  # of the logits' standard deviation
ROWS = 4096
TOLD = "verified"  # the word before how far a verification is
Progress = Callable[[int, int], None]


def prompt_ids(tokenizer, positions: int | None) -> list[torch.Tensor]:
    """Token ids [1, tokens] of `PROMPTS`, cut at the model's positions; None: it has no end."""
    return [tokenizer(p, return_tensors="pt")["input_ids"][:, :positions] for p in PROMPTS]


def positions_of(config) -> int | None:
    """`Checkpoint.positions` of a model that transformers loaded, of whatever family."""
    name, family = "max_position_embeddings", FAMILIES.get(config.model_type)
    return getattr(config, family.spellings.get(name, name) if family else name, None)


def verify(
    folder: Path,
    source: Path | None = None,
    expected: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> dict:
    """Verify in a fresh process; the report it printed, or `VerificationError`.

    expected: a safetensors file of logits [tokens, vocabulary] named by the numbers of `PROMPTS`,
    what a trained, sparse or quantised model computed before it was written, and of how much a
    difference is rounding (`tolerance`, if not `TOLERANCE`). Give a source, or this, or neither.
    progress(done, total) counts the blocks that prompts have passed, in both models.
    """
    for path in (folder, source):
        if path is not None and not (path / "config.json").exists():
            raise InputError(f"There is no checkpoint in {path}: it has no config.json.")
    if source is not None and not (folder / "compression.json").exists():
        raise InputError(f"{folder} has no compression.json, so what was removed is unknown.")
    if source is not None and "plan" not in read_record(folder):
        raise InputError(f"{folder / 'compression.json'} has no plan; verify it without --source.")
    if source is not None and (read_record(folder).get("recovery") or {}).get("kept"):
        raise InputError(
            f"{folder} was trained after the cut, so it computes something else than its source "
            "without some units; verify it without --source."
        )
    if source is not None and "quantization" in read_record(folder):
        raise InputError(
            f"{folder} was quantised after the cut, so it computes something else than its source "
            "without some units; verify it without --source."
        )
    check_opens(folder)
    command = [sys.executable, "-P", "-m", "compressor.verify", str(folder)]
    command += [str(against)] if (against := source or expected) else []
    code, printed, errors = listened(command, progress)
    if code < 0:
        raise MachineError(
            f"The verification of {folder} was killed by signal {-code}, most likely for want of memory."
        )
    try:
        report = json.loads(printed.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise VerificationError(
            f"The verification of {folder} broke off:\n{errors.strip()[-2000:]}"
        ) from None
    if report["error"]:
        raise VerificationError(report["error"])
    return report


def check_opens(folder: Path) -> None:
    """Refuse what would be refused as a source: weights that loaders disagree about, a model that is no
    generator, tensors that its config does not have. Of types without a table here the first alone.
    """
    try:
        config = read_object(folder / "config.json")
        if config.get("model_type") in FAMILIES and not config.get("quantization_config"):
            Checkpoint(folder)
        else:
            weight_files(folder, config)
    except InputError as error:
        raise VerificationError(str(error)) from error


def listened(command: list[str], progress: Progress) -> tuple[int, str, str]:
    """Run a command; its exit code, what it printed, and the lines on its stderr but those of `tell`."""
    errors = []
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True)
        try:
            for line in child.stderr:
                word, *numbers = line.split() or [""]
                if word == TOLD and len(numbers) == 2:
                    progress(*map(int, numbers))
                else:
                    errors.append(line)
            code = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            child.stderr.close()
        out.seek(0)
        return code, out.read(), "".join(errors)


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

        handles = [block.register_forward_hook(count) for block in blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


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
    if quantization is not None:
        report["parameters"] = PackedCheckpoint(folder).parameters
    prompts = prompt_ids(tokenizer, positions_of(model.config))
    sparsity = read_record(folder).get("sparsity")
    masked = expected is None and source is not None and sparsity is None
    passed = Passed(progress, 1 + masked)
    with passed.of(model):
        ours = [logits(model, ids) for ids in prompts]
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
    report["logits_difference"] = worst
    if not worst <= tolerance:
        raise VerificationError(
            f"The logits of {folder} differ from the {whose} by {worst:.2e} of their "
            f"standard deviation; at most {tolerance:.0e} is rounding."
        )
    return report


def load(folder: Path, dtype: torch.dtype | str = "auto"):
    """Model and tokenizer by transformers, refusing tensors that did not match, but for stored buffers.

    Projections are `Linear` modules in every family; weights that GPT-2's are made of are views.
    `auto` is what the config says, which need not be the dtype that a source's weights are in.
    """
    from transformers import AutoModelForCausalLM, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    trusted = may_run_code(folder)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=trusted,
        )
        family = FAMILIES.get(model.config.model_type)
        tokenizer = read_tokenizer(folder, coded=family is not None and not family.stock)
    except Exception as error:  # whatever transformers raises, the checkpoint does not load
        raise VerificationError(f"{folder} does not load with transformers: {error}") from error
    not_read = family.not_read if family is not None else ()
    kinds = {
        kind: [name for name in map(str, names) if not name.endswith(not_read)]
        for kind, names in found.items()
    }
    wrong = {kind: sorted(names) for kind, names in kinds.items() if names}
    if wrong:
        raise VerificationError(f"{folder} loads with tensors that do not match: {wrong}.")
    return make_linear(model).eval(), tokenizer


def masked_logits(
    source: Path, folder: Path, prompts: list[torch.Tensor], passed: Passed
) -> list[torch.Tensor]:
    """The prompts' logits of the source without the units that `folder` says were removed."""
    checkpoint = Checkpoint(source)
    if checkpoint.coded:
        masked, tokenizer = built(checkpoint), checkpoint.tokenizer()
    else:
        masked, tokenizer = load(source, checkpoint.dtype)
    for own, ids in zip(prompt_ids(tokenizer, checkpoint.positions), prompts, strict=True):
        if not torch.equal(own, ids):
            raise VerificationError(f"The tokenizer in {folder} differs from the source's.")
    record = read_record(folder)
    try:
        Plan(record["plan"]["blocks"]).check(checkpoint)
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise VerificationError(
            f"The plan in {folder / 'compression.json'} is not one for {source}: {error} Is that the "
            "model it was cut from?"
        ) from error
    plan = masked_plan(masked, checkpoint, Checkpoint(folder), record)
    with plan, passed.of(masked):
        return [logits(masked, ids) for ids in prompts]


def built(checkpoint: Checkpoint):
    """The model of a folder whose own class is not run, from what is read of it."""
    config = checkpoint.model_config()
    with init_empty_weights(include_buffers=False):
        model = model_of(config, checkpoint.family, checkpoint.dtype)
    tensors = checkpoint.read(checkpoint.tensors)
    if checkpoint.tied:
        tensors[checkpoint.family.head] = tensors[checkpoint.family.embedding]
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def read_record(folder: Path) -> dict:
    """What compression.json says; nothing where there is none."""
    file = folder / "compression.json"
    return read_object(file) if file.exists() else {}


@torch.no_grad()
def logits(model, ids: torch.Tensor) -> torch.Tensor:
    """float32 logits [tokens, vocabulary] of one prompt [1, tokens], by the model's own forward."""
    handles, linears = [], []
    stay_packed(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            linears.append((module, module.__dict__.get("forward")))
            module.forward = partial(wide_linear, module)
        elif isinstance(module, torch.nn.Embedding):  # a look-up is exact in any dtype
            handles.append(module.register_forward_hook(lambda m, args, out: out.float()))
        elif next(module.parameters(recurse=False), None) is not None:
            handles.append(module.register_forward_pre_hook(_widen))
            handles.append(module.register_forward_hook(_restore))
    try:
        return model(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        for handle in handles:
            handle.remove()
        for module, former in linears:
            del module.forward
            if former is not None:  # compressed-tensors gives its modules a forward of their own
                module.forward = former


def wide_linear(module: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """x W^T + b in float32, widening `ROWS` rows of the weight at a time."""
    parts = []
    for rows in rows_of(module, ROWS):
        parts.append(torch.nn.functional.linear(x.float(), rows.float()))
        drop_pages(rows)
    result = torch.cat(parts, -1)
    return result if module.bias is None else result + module.bias.float()


def _widen(module, args) -> None:
    module.narrow = {name: p.data for name, p in module.named_parameters(recurse=False)}
    for name, parameter in module.named_parameters(recurse=False):
        parameter.data = module.narrow[name].float()


def _restore(module, args, output) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        parameter.data = module.narrow[name]
    del module.narrow


def main(arguments: list[str]) -> None:
    try:
        folder, *against = map(Path, arguments)
        if against and against[0].is_file():
            report = verify_here(folder, expected=against[0], progress=tell)
        else:
            report = verify_here(folder, *against, progress=tell)
    except CompressorError as error:
        report = {"error": str(error)}
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
