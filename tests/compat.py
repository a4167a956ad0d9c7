"""`make compat`: results written here, loaded by another version of transformers.

compat.py write FOLDER      uniform and per-layer results of every family, and their logits
compat.py load FOLDER       load them; needs nothing but torch, safetensors and transformers
"""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

IDS = torch.arange(3, 23)[None]
PROMPT = 6
VARIANTS = {
    "llama": {"tie_word_embeddings": True, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "mistral": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": {"rope_theta": 5e5},
}
KEPT = {
    "uniform": [{"attention": [0, 2, 3], "ffn": [*range(20)]}] * 3,
    "per-layer": [
        {"attention": [0, 2, 3], "ffn": [*range(20)]},
        {"attention": [0, 1, 2, 3], "ffn": [*range(3, 35)]},
        {"attention": [1], "ffn": [*range(48)]},
    ],
}


def write_all(folder: Path) -> None:
    """The logits are those of the padded layout, which is a stock model of the source's type."""
    from conftest import build_checkpoint
    from transformers import AutoModelForCausalLM

    from compressor.checkpoint import Checkpoint
    from compressor.plan import Plan
    from compressor.writing import write

    shutil.rmtree(folder, ignore_errors=True)
    for family, special in VARIANTS.items():
        source = Checkpoint(build_checkpoint(folder / "sources" / family, family, **special))
        for layout, kept in KEPT.items():
            result = folder / "results" / f"{family}-{layout}"
            padded = folder / "padded" / result.name
            write(source, Plan(kept), result, layout)
            write(source, Plan(kept), padded, "padded")
            model = AutoModelForCausalLM.from_pretrained(padded).eval()
            with torch.no_grad():
                logits = model(IDS).logits.contiguous()
            save_file({"logits": logits}, folder / f"{result.name}.safetensors")


def load_all(folder: Path) -> None:
    import transformers
    from transformers import AutoModelForCausalLM

    transformers.logging.set_verbosity_error()
    print(f"transformers {transformers.__version__}")
    for result in sorted((folder / "results").iterdir()):
        own = result.name.endswith("per-layer")
        if own:
            check_refused(result)
        model, found = AutoModelForCausalLM.from_pretrained(
            result, trust_remote_code=own, output_loading_info=True
        )
        if any(found.values()):
            raise SystemExit(f"{result.name}: tensors that do not match: {found}")
        with torch.no_grad():
            logits = model.eval()(IDS).logits
        expected = load_file(folder / f"{result.name}.safetensors")["logits"]
        difference = ((logits - expected).abs().max() / expected.std()).item()
        if not difference < 1e-4:
            raise SystemExit(f"{result.name}: the logits differ by {difference:.1e}")
        first, *others = (
            model.generate(
                IDS[:, :PROMPT], max_new_tokens=12, do_sample=False, eos_token_id=None,
                pad_token_id=0, **cache,
            )
            for cache in (
                {"use_cache": False},
                {"cache_implementation": "dynamic"},
                {"cache_implementation": "static"},
            )
        )  # fmt: skip
        if not all(torch.equal(first, other) for other in others):
            raise SystemExit(f"{result.name}: generation depends on the cache")
        print(f"{result.name:<18} {type(model).__name__:<28} logits within {difference:.1e}")


def check_refused(result: Path) -> None:
    """Without its code a model of different widths must not load."""
    from transformers import AutoModelForCausalLM

    try:
        AutoModelForCausalLM.from_pretrained(result)
    except RuntimeError:
        return
    raise SystemExit(f"{result.name} loads without its code")


if __name__ == "__main__":
    {"write": write_all, "load": load_all}[sys.argv[1]](Path(sys.argv[2]))
