"""`make compat`: results written here, loaded by another version of transformers.

compat.py write FOLDER      uniform, nas and per-layer results of every family that has them, of
                            mixtures in both forms of their files, and of models of texts and images;
                            their logits, the ids of strings, and what `inspect` answers for 4.57
compat.py load FOLDER       load them; needs nothing but torch, safetensors and transformers
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

IDS = torch.arange(3, 23)[None]
PROMPT = 6
TEXTS = ("a house", " two  spaces", "x = 1\n", "né ¿?")
OLDER = "4.57"
VARIANTS = {
    "llama": {"tie_word_embeddings": True, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "mistral": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": {"rope_theta": 5e5},
}
UNIFORM = "uniform"
KEPT = {
    UNIFORM: [{"attention": [0, 2, 3], "ffn": [*range(20)]}] * 3,
    "nas": [{"attention": [0, 2, 3], "ffn": [*range(width)]} for width in (20, 32, 48)],
    "per-layer": [
        {"attention": [0, 2, 3], "ffn": [*range(20)]},
        {"attention": [0, 1, 2, 3], "ffn": [*range(3, 35)]},
        {"attention": [1], "ffn": [*range(48)]},
    ],
}
EXPERTS = [{"attention": [0, 1, 2, 3], "ffn": [0, 2, 5]}] * 3
CODED = ("nas", "per-layer")  # loaded with the code of their folders
# Caches with which a version's own class of a type does not generate, uncut models neither.
BROKEN = {("5.19", "bloom"): "static", ("4.57", "olmoe"): "static"}


def write_all(folder: Path) -> None:
    """The logits are those of the padded layout, which is a stock model of the source's type; or of what
    the newest transformers makes of a mixture, of which no cut can be padded.
    """
    from conftest import make_family, make_tokenizer
    from experts import SEVERAL_KINDS, fuse
    from wrappers import KINDS, make_wrapper

    from compressor.model.families import FAMILIES

    shutil.rmtree(folder, ignore_errors=True)
    stock = {name: f for name, f in FAMILIES.items() if f.stock and name not in SEVERAL_KINDS}
    kinds = {name: (name, VARIANTS.get(name, {})) for name in stock}
    kinds["qwen2-plain"] = ("qwen2", {})  # without windows its cut heads go out as llama
    for name, (model_type, sizes) in kinds.items():
        place = make_family(model_type, folder / "sources" / name, **sizes)
        if not FAMILIES[model_type].experts:
            write_one(folder, name, place, KEPT)
            continue
        write_one(folder, name, place, {UNIFORM: EXPERTS})
        fused = fuse(place, folder / "sources" / f"{name}-stacked")
        write_one(folder, fused.name, fused, {UNIFORM: EXPERTS})
    make_tokenizer().save_pretrained(folder / "tokenizer")
    for name in (kind for kind in KINDS if not kind.startswith("qwen3_5")):
        place = make_wrapper(folder / "sources" / name, name, folder / "tokenizer")
        write_one(folder, name, place, {UNIFORM: KEPT[UNIFORM]})
        as_published(place)
        write_one(folder, f"{name}-published", place, {UNIFORM: KEPT[UNIFORM]})


def as_published(folder: Path) -> None:
    """Have a model of texts and images be as version 4 wrote it, and the hub has it."""
    from edits import edit_config, edit_tensors

    def deepen(tensors: dict[str, torch.Tensor]) -> None:
        old = "vision_tower."
        for name in [n for n in tensors if n.startswith(old)]:
            tensors[name.replace(old, f"{old}vision_model.", 1)] = tensors.pop(name)

    written = json.loads((folder / "config.json").read_text())
    if written["vision_config"]["model_type"] in ("clip_vision_model", "siglip_vision_model"):
        edit_tensors(folder, deepen)
    text = written["text_config"]
    rope = text["rope_parameters"]
    if "mrope_section" in rope:
        scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
        text |= {"rope_scaling": scaling, "rope_theta": rope["rope_theta"]}
        del text["rope_parameters"]
        edit_config(folder, text_config=text)


def write_one(folder: Path, name: str, place: Path, kept_of: dict[str, list]) -> None:
    """The results of a source, one for each layout that it has."""
    from compressor.analysis.inspection import inspect
    from compressor.errors import InputError
    from compressor.model.checkpoint import Checkpoint
    from compressor.planning.plan import Plan
    from compressor.writing.cuts import write

    source = Checkpoint(place)
    family = source.family
    for layout, kept in kept_of.items():
        if (family.heads_fixed and not family.own_widths) or family.couples_heads(source.config):
            kept = [block | {"attention": [*range(source.kv_heads)]} for block in kept]
        result = folder / "results" / f"{name}-{layout}"
        padded = folder / "padded" / result.name
        try:
            write(source, Plan(kept), result, layout)
        except InputError as sentence:
            print(f"{result.name}: {sentence}")
            continue
        answer = next(a for a in inspect(result)["loads"] if OLDER in a["target"])
        ids = [source.tokenizer()(text)["input_ids"] for text in TEXTS]
        told = {"ids": ids, "loads": answer["loads"], "because": answer["because"]}
        (folder / f"{result.name}.json").write_text(json.dumps(told))
        write(source, Plan(kept), padded, UNIFORM if family.experts else "padded")
        model = class_of(padded).from_pretrained(padded).eval()
        with torch.no_grad():
            logits = model(input_ids=IDS).logits.contiguous()
        save_file({"logits": logits}, folder / f"{result.name}.safetensors")


def class_of(folder: Path):
    """transformers' own choice of a model's class: those of texts and images have another one."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    config = json.loads((folder / "config.json").read_text())
    return AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM


def load_all(folder: Path) -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    print(f"transformers {transformers.__version__}")
    wrong = 0
    for result in sorted((folder / "results").iterdir()):
        told = json.loads((folder / f"{result.name}.json").read_text())
        said = told["loads"] if transformers.__version__.startswith(OLDER) else True
        try:
            found = load_one(result, load_file(folder / f"{result.name}.safetensors")["logits"])
            check_ids(result, told["ids"])
            if not said and not result.name.endswith(CODED):  # inspect speaks of those without code
                found, wrong = f"WRONG: inspect says no ({told['because']})", wrong + 1
        except Exception as error:  # whatever transformers raises, it does not load
            found = f"{'WRONG' if said else 'no, as inspect says'}: {error}"
            wrong += said
        print(f"{result.name:<24} {found}")
    if wrong:
        raise SystemExit(f"{wrong} results are wrong in transformers {transformers.__version__}")


class Mismatch(Exception):
    pass


def load_one(result: Path, expected: torch.Tensor) -> str:
    """What a result loads as, and how near its logits [1, tokens, vocabulary] are."""
    import transformers

    own = result.name.endswith(CODED)
    if own:
        check_refused(result)
    # Eager: version 4's scaled_dot_product_attention leaves Gemma 2's soft caps out.
    model, found = class_of(result).from_pretrained(
        result, trust_remote_code=own, output_loading_info=True, attn_implementation="eager"
    )
    if any(found.values()):
        raise Mismatch(f"tensors that do not match: {found}")
    with torch.no_grad():
        logits = model.eval()(input_ids=IDS).logits
    difference = ((logits - expected).abs().max() / expected.std()).item()
    if not difference < 1e-4:
        raise Mismatch(f"the logits differ by {difference:.1e}")
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(IDS[:, :PROMPT], use_cache=False, **options)
    broken = BROKEN.get(
        (".".join(transformers.__version__.split(".")[:2]), model.config.model_type)
    )
    for cache in {"dynamic", "static"} - {broken}:
        if not torch.equal(
            model.generate(IDS[:, :PROMPT], cache_implementation=cache, **options), plain
        ):
            raise Mismatch(f"generation with a {cache} cache differs from that without")
    return f"{type(model).__name__:<28} logits within {difference:.1e}"


def check_ids(result: Path, expected: list[list[int]]) -> None:
    """The tokenizer gives what the source's did, and nothing that a causal model does not take."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(result, trust_remote_code=result.name.endswith(CODED))
    given = [tokenizer(text) for text in TEXTS]
    if [g["input_ids"] for g in given] != expected:
        raise Mismatch("the tokenizer gives other ids")
    if more := set(given[0]) - {"input_ids", "attention_mask"}:
        raise Mismatch(
            f"the tokenizer gives {', '.join(sorted(more))}, which causal models do not take"
        )


def check_refused(result: Path) -> None:
    """Without its code a model of different widths must not load."""
    from transformers import AutoModelForCausalLM

    try:
        AutoModelForCausalLM.from_pretrained(result, trust_remote_code=False)
    except (RuntimeError, ValueError):
        return
    raise Mismatch("it loads without its code")


if __name__ == "__main__":
    {"write": write_all, "load": load_all}[sys.argv[1]](Path(sys.argv[2]))
