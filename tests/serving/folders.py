"""`make serve`, first part: cuts of every family in every layout that an engine may load, as folders and
GGUF files, with what transformers computes with them.

    python tests/serving/folders.py FOLDER

FOLDER/NAME is a folder, FOLDER/NAME.json what is known of it: prompts (token ids), the log-probabilities
of what follows each, the tokens that greedy decoding gives, and what `inspect` says of the engines.
"""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import torch
from experts import SEVERAL_KINDS, fuse
from safetensors.torch import load_file, save_file
from serving.models import SIZES, TEXTS, source_of
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    logging,
)
from wrappers import KINDS

from compressor.analysis.inspection import inspect
from compressor.config.packing import FP8, NVFP4A16, W4A16, Packing
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.experts import in_channels
from compressor.model.families import FAMILIES
from compressor.model.tensors import SINGLE
from compressor.planning.plan import Plan
from compressor.quantization.stream import Quantizing
from compressor.writing.cuts import write
from compressor.writing.gguf import export
from compressor.writing.packed import Packed
from compressor.writing.tokenizer_class import strings
from compressor.writing.writer import write_folder

HEADS, OWN_HEADS = (0, 2), ((0, 2), (1,), (0, 1, 2, 3))  # those of a block, of each of its own
CHANNELS, OWN = 256, (256, 512, 160)
EXPERTS = [0, 2, 3, 7]
NARROW = "narrow"  # a uniform cut of a mixture that keeps all experts, half of the channels of each
STACKED = "stacked"  # a uniform cut of a mixture in whose files experts are one behind the other
LAYOUTS = ("uniform", "nas", "per-layer")
WITHIN = 1e-3  # of the log-probabilities' standard deviation
# Schemes of quantised weights, of a Llama in this dtype (vLLM's 4-bit kernels for CPUs have bfloat16
# alone), and how near log-probabilities are: an input that is rounded the other way shows in FP8.
QUANTISED = {
    FP8: (torch.float32, 2e-2),
    W4A16: (torch.bfloat16, 0.2),
    NVFP4A16: (torch.bfloat16, 0.2),
}
GPU_ALONE = (NVFP4A16,)  # there is no kernel for CPUs
NEW_TOKENS = 24
MESSAGES = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A model."},
    {"role": "user", "content": "Which?"},
]
SWAPPED = "llama-uniform-swapped"  # a wrong model, which every check must find


def plan_of(source: Checkpoint, layout: str) -> Plan:
    """Two of four KV groups, and half of the FFN channels or another number in every block; of a mixture
    half of the experts.
    """
    family = source.family
    if family.experts:
        whole = {"attention": [*range(source.units["attention"])]}
        kept = EXPERTS
        if family.experts.split:  # another half of every second expert
            width = source.units["ffn"] // source.ffn_parts
            kept = [u for u in range(source.units["ffn"]) if (u // width + u) % 2]
        return Plan([whole | {"ffn": kept}] * source.blocks)
    whole = not family.cuts_heads or family.alibi or family.couples_heads(source.config)
    heads = OWN_HEADS if layout == "per-layer" else [HEADS] * 3
    if whole:
        heads = [range(source.units["attention"])] * 3
    widths = [CHANNELS] * 3 if layout == "uniform" else OWN
    if family.ffn_fixed:
        widths = [source.units["ffn"]] * 3
    return Plan(
        [{"attention": [*h], "ffn": [*range(w)]} for h, w in zip(heads, widths, strict=True)]
    )


def swap_groups(folder: Path) -> None:
    """Exchange the keys of the first two KV groups, which changes no shape."""
    tensors = load_file(folder / SINGLE)
    name = "model.layers.0.self_attn.k_proj.weight"
    first, second, *rest = tensors[name].split(SIZES["head_dim"])
    tensors[name] = torch.cat((second, first, *rest)).contiguous()
    save_file(tensors, folder / SINGLE, {"format": "pt"})


def cut(source: Checkpoint, kind: str, folder: Path) -> None:
    """Write a cut as a layout, or as a uniform one that is quantised or has its experts in stacks."""
    if kind == STACKED:
        fused = fuse(source.path, folder.with_name(folder.name + ".fused"))
        cut(Checkpoint(fused), "uniform", folder)
        shutil.rmtree(fused)
        return
    if kind == NARROW:
        source, kind = in_channels(source), "uniform"
    if kind not in QUANTISED:
        write(source, plan_of(source, kind), folder, kind)
        return
    dense = folder.with_name(folder.name + ".dense")
    write(source, plan_of(source, "uniform"), dense, "uniform")
    checkpoint, packing = Checkpoint(dense), Packing.of(kind, 128)
    write_folder(Packed(checkpoint, packing, Quantizing(checkpoint, packing).blocks()), folder)
    shutil.rmtree(dense)


@torch.no_grad()
def known_of(folder: Path, dtype: torch.dtype, within: float) -> dict:
    """What transformers makes of a folder."""
    wrapper = json.loads((folder / "config.json").read_text())["model_type"] in KINDS
    kind = AutoModelForImageTextToText if wrapper else AutoModelForCausalLM
    model = kind.from_pretrained(folder, trust_remote_code=True, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None}
    options["suppress_tokens"] = [tokenizer.eos_token_id]  # llama.cpp goes on only without it
    following, greedy = [], []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        following.append(model.eval()(ids).logits[0, -1].float().log_softmax(-1).tolist())
        greedy.append(model.generate(ids, pad_token_id=0, **options)[0, len(prompt) :].tolist())
    texts = strings(tokenizer.all_special_tokens)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "within": within,
        "images": wrapper,
        "prompts": prompts,
        "following": following,
        "greedy": greedy,
        "texts": texts,
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "eos": tokenizer.eos_token_id,
        "chat": tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True),
        "messages": MESSAGES,
    }


def main(folder: Path) -> None:
    from conftest import build_checkpoint  # of the tests: under pytest another has this name

    logging.set_verbosity_error()
    shutil.rmtree(folder, ignore_errors=True)
    tried = {name: family for name, family in FAMILIES.items() if name not in SEVERAL_KINDS}
    wrappers = [kind for kind in KINDS if not kind.startswith("qwen3_5")]
    alike = [*wrappers, *(name for name, family in tried.items() if family.experts)]
    # A plan of whole widths, as of Bloom's, is uniform in every layout.
    own = [f for f in tried if f not in alike]
    kinds = [(f, x) for f in own for x in LAYOUTS if x == "uniform" or not tried[f].ffn_fixed]
    kinds += [(f, "uniform") for f in alike] + [("llama", x) for x in QUANTISED]
    kinds += [(f, x) for f in alike if f in tried for x in (STACKED, NARROW)]
    for family, kind in kinds:
        name, (dtype, within) = f"{family}-{kind}", QUANTISED.get(kind, (torch.float32, WITHIN))
        build = partial(build_checkpoint, dtype=dtype)
        source = source_of(family, folder / "sources" / f"{family}-{dtype}", build)
        try:
            cut(source, kind, folder / name)
        except InputError as sentence:
            print(f"{name}: {sentence}")
            continue
        finish(folder, name, dtype, within, expected=kind not in GPU_ALONE)
        if name == SWAPPED.removesuffix("-swapped"):
            shutil.copytree(folder / name, folder / SWAPPED)
            told = (folder / f"{name}.json").read_text()
            (folder / f"{SWAPPED}.json").write_text(told)
            swap_groups(folder / SWAPPED)
            export(Checkpoint(folder / SWAPPED), folder / f"{SWAPPED}.gguf", "f32")


def finish(folder: Path, name: str, dtype: torch.dtype, within: float, expected: bool) -> None:
    """The GGUF file of a folder, if it has one, and what is known of it. expected: whether engines are
    to do here what `inspect` says of them.
    """
    known = known_of(folder / name, dtype, within)
    answers = inspect(folder / name)["loads"]
    known["loads"] = {a["target"]: a["loads"] if expected else None for a in answers}
    try:
        known["notes"] = export(Checkpoint(folder / name), folder / f"{name}.gguf", "f32")[1:]
    except InputError as sentence:
        known["no_gguf"] = str(sentence)
    (folder / f"{name}.json").write_text(json.dumps(known))
    print(f"{name}: written")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
