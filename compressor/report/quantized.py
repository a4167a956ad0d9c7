"""What a quantised result says about itself."""

from pathlib import Path

from compressor.config.hub_names import called
from compressor.config.packing import FP8, NVFP4A16, W4A16, Packing
from compressor.report.card import how_made, quality
from compressor.report.metadata import head
from compressor.report.result import Result

# What vLLM is known to need, by scheme.
NEEDS = {
    FP8: "FP8 kernels want an NVIDIA GPU of the Ada or Hopper generation or newer",
    NVFP4A16: "NVFP4 kernels want an NVIDIA GPU of the Ampere generation or newer",
}
MARLIN = (32, 64, 128)  # groups that vLLM's 4-bit kernels have, besides whole rows


def write_card(folder: Path, result: Result, record: dict) -> None:
    """The model card: what this is, what loads it, what it cost, how it was made."""
    quantization = record["quantization"]
    name = called(result.source)
    packing = Packing(quantization["scheme"], quantization["group"])
    size, parameters = "", f"{result.parameters_after:,} parameters"
    tags = ["compressed-tensors", packing.scheme]
    if "plan" in record:
        size, tags = f"compressed to {result.keep_reached:.1%} and ", ["pruned", *tags]
        parameters = f"{result.parameters_after:,} of {result.parameters_before:,} parameters stay"
    text = f"""{head(folder, Path(result.source), tags, base_model_relation="quantized")}
# {name}, {size}quantised to {packing.known.bits} bits

{parameters}, in {result.bytes_after:,} bytes of tensors (before: {result.bytes_before:,}). The
projections of the blocks are symmetric {packing.words},
{quantization["bits_per_weight"]:.3f} bits a weight; embedding, head, norms and biases are as they were.
{inputs(packing)}
{loading(packing)}

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("this folder", dtype="auto")

{quality(result, record)}

{made(folder, result, record)}
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def inputs(packing: Packing) -> str:
    if not packing.known.rounds_inputs:
        return ""
    return (
        "What a projection reads is rounded to 8 bits, too, with a scale for every token: servers do "
        "so, and the perplexity below counts it.\n"
    )


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


def loading(packing: Packing) -> str:
    """What reads the folder, and what was not tried."""
    kernels = NEEDS.get(packing.scheme, "it has 4-bit kernels for this group size")
    if packing.scheme == W4A16 and packing.group not in MARLIN:
        kernels = f"it documents 4-bit kernels for groups of {', '.join(map(str, MARLIN))} only"
    return (
        "It loads with `transformers` where the package `compressed-tensors` is installed, which "
        "unpacks the weights at the first forward pass. The format is compressed-tensors' "
        f"{packing.known.format} ({packing.known.preset}); vLLM reads that format, and {kernels}. It "
        "was not run in vLLM here."
    )
