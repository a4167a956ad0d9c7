"""Proof that a written checkpoint works, in a fresh process and with plain transformers.

    python -m compressor.verify DIR [SOURCE]

loads DIR with `AutoModelForCausalLM.from_pretrained`, accepts no missing, unexpected or mismatched
tensor, and compares the logits of fixed prompts with those of SOURCE whose removed units are
masked. Both are computed in float32, every module's weights being widened only while it runs and
their pages dropped after it, so a model larger than the memory can be verified.
"""

import ctypes
import json
import mmap
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from compressor.errors import CompressorError, VerificationError

PROMPTS = (
    "Once upon a time there was a small house at the edge of a wood, and in it lived",
    "def first(values):\n    for value in values:\n        return value\n",
)
TOLERANCE = 1e-3  # of the logits' standard deviation
MADV_DONTNEED = 4


def verify(folder: Path, source: Path | None = None) -> dict:
    """Verify in a fresh process; the report it printed, or `VerificationError`."""
    command = [sys.executable, "-P", "-m", "compressor.verify", str(folder)]
    if sys.version_info < (3, 11):
        command.remove("-P")
    command += [str(source)] if source else []
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        report = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise VerificationError(
            f"The verification of {folder} broke off:\n{done.stderr.strip()[-2000:]}"
        ) from None
    if report["error"]:
        raise VerificationError(report["error"])
    return report


def verify_here(folder: Path, source: Path | None = None) -> dict:
    """The same in this process: loads, and computes what the plan says."""
    model, tokenizer = load(folder)
    report = {"folder": str(folder), "class": type(model).__name__, "loads": True, "error": None}
    report["parameters"] = model.num_parameters()
    prompts = [tokenizer(p, return_tensors="pt")["input_ids"] for p in PROMPTS]
    ours = [logits(model, ids) for ids in prompts]
    if not all(torch.isfinite(x).all() for x in ours):
        raise VerificationError(f"{folder} computes logits that are not finite.")
    if source is None:
        return report
    del model
    masked, their_tokenizer = load(source)
    for prompt, ids in zip(PROMPTS, prompts, strict=True):
        if not torch.equal(their_tokenizer(prompt, return_tensors="pt")["input_ids"], ids):
            raise VerificationError(f"The tokenizer in {folder} differs from the source's.")
    with masked_plan(masked, source, folder):
        theirs = [logits(masked, ids) for ids in prompts]
    worst = max(((a - b).abs().max() / b.std()).item() for a, b in zip(ours, theirs, strict=True))
    report["logits_difference"] = worst
    if not worst <= TOLERANCE:
        raise VerificationError(
            f"The logits of {folder} differ from the masked source's by {worst:.2e} of their "
            f"standard deviation; at most {TOLERANCE:.0e} is rounding."
        )
    return report


def load(folder: Path):
    """Model and tokenizer by plain transformers, refusing any tensor that did not match."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever transformers raises, the checkpoint does not load
        raise VerificationError(f"{folder} does not load with transformers: {error}") from error
    wrong = {kind: sorted(map(str, names)) for kind, names in found.items() if names}
    if wrong:
        raise VerificationError(f"{folder} loads with tensors that do not match: {wrong}.")
    return model.eval(), tokenizer


@contextmanager
def masked_plan(model, source: Path, folder: Path):
    """The source model with the units masked that compression.json says were removed."""
    from compressor.checkpoint import Checkpoint
    from compressor.methods.statistics import Geometry, masked_units

    checkpoint = Checkpoint(source)
    geometry = Geometry.of(checkpoint)
    kept = json.loads((folder / "compression.json").read_text())["plan"]["blocks"]
    layers = model.get_submodule(checkpoint.family.layers)
    with ExitStack() as masks:
        for layer, block in zip(layers, kept, strict=True):
            lost = {g: sorted({*range(n)} - {*block[g]}) for g, n in checkpoint.units.items()}
            units = {g: torch.tensor(u, dtype=torch.long) for g, u in lost.items()}
            masks.enter_context(masked_units(layer, geometry, units))
        yield


@torch.no_grad()
def logits(model, ids: torch.Tensor) -> torch.Tensor:
    """float32 logits [tokens, vocabulary] of one prompt [1, tokens], by the model's own forward."""
    handles = []
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        if isinstance(module, torch.nn.Embedding):  # a look-up is exact in any dtype
            handles.append(module.register_forward_hook(lambda m, a, out: out.float()))
        else:
            handles.append(module.register_forward_pre_hook(_widen))
            handles.append(module.register_forward_hook(_restore))
    try:
        return model(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        for handle in handles:
            handle.remove()


def _widen(module, args) -> None:
    module.narrow = {name: p.data for name, p in module.named_parameters(recurse=False)}
    for name, parameter in module.named_parameters(recurse=False):
        parameter.data = module.narrow[name].float()


def _restore(module, args, output) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        parameter.data = module.narrow[name]
        drop_pages(parameter.data)
    del module.narrow


def drop_pages(tensor: torch.Tensor) -> None:
    """Give back the resident pages of a tensor that is mapped from a file; they are read again.

    Only for tensors that nobody wrote to: in a private mapping, written pages would be lost.
    """
    if not sys.platform.startswith("linux") or not is_mapped(tensor):
        return
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin:
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_DONTNEED
        )


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether the memory of a tensor is a mapped safetensors file."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            begin, end = (int(x, 16) for x in line.split(" ", 1)[0].split("-"))
            if begin <= address < end:
                return True
    return False


def main(arguments: list[str]) -> None:
    try:
        report = verify_here(Path(arguments[0]), Path(arguments[1]) if arguments[1:] else None)
    except CompressorError as error:
        report = {"error": str(error)}
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
