"""What a quantised result says about itself."""

from pathlib import Path

from compressor.report.card import how_made, quality
from compressor.report.result import Result

MARLIN = (32, 64, 128)  # groups that vLLM's 4-bit kernels have, besides whole rows


def write_card(folder: Path, result: Result, record: dict) -> None:
    """The model card: what this is, what loads it, what it cost, how it was made."""
    quantization = record["quantization"]
    name, group = Path(result.source).name, quantization["group"]
    size, tags, parameters = "", "", f"{result.parameters_after:,} parameters"
    if "plan" in record:
        size, tags = f"compressed to {result.keep_reached:.1%} and ", "pruned, "
        parameters = f"{result.parameters_after:,} of {result.parameters_before:,} parameters stay"
    text = f"""---
base_model: {name}
tags: [{tags}compressed-tensors, w4a16]
---
# {name}, {size}quantised to 4 bits

{parameters}, in {result.bytes_after:,} bytes of tensors (before: {result.bytes_before:,}). The
projections of the blocks are symmetric 4-bit integers with a scale for every {group} input channels,
{quantization["bits_per_weight"]:.3f} bits a weight; embedding, head, norms and biases are as they were.

{loading(group)}

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("this folder", dtype="auto")

{quality(result, record)}

{made(folder, result, record)}
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def made(folder: Path, result: Result, record: dict) -> str:
    """What was done before the quantisation, and where all of it is kept."""
    if "plan" in record:
        return how_made(folder, result, record)
    kept = "`compression.json` holds all settings."
    if "sparsity" not in record:
        return kept
    return (
        f"{result.zeros:,} weights, {result.sparsity_reached:.1%} of the projections', were "
        f"zeroed by `{result.method}`, seed {result.seed}; the format stores zeros like any "
        f"weight. {kept}"
    )


def loading(group: int) -> str:
    """What reads the folder, and what was not tried."""
    kernels = "has 4-bit kernels for this group size"
    if group not in MARLIN:
        kernels = f"documents 4-bit kernels for groups of {', '.join(map(str, MARLIN))} only"
    return (
        "It loads with `transformers` where the package `compressed-tensors` is installed, which "
        "unpacks the weights at the first forward pass. The format is compressed-tensors' "
        f"pack-quantized W4A16; vLLM reads that format and {kernels}. It was not run in vLLM here."
    )
