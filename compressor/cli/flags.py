"""Arguments and options that several commands share; a command gives the defaults."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

Source = Annotated[Path, Argument(help="Checkpoint folder: config, safetensors, tokenizer.")]
Dest = Annotated[Path, Argument(help="Folder to make; it must not exist.")]

# How small.
TargetParams = Annotated[str | None, Option(help="Parameters to reach, such as 5.4B.")]
TargetBytes = Annotated[str | None, Option(help="Bytes to reach, such as 11GB.")]
Budget = Annotated[
    str,
    Option(
        help="What --keep and --keep-blocks are shares of: params, flops, or a JSON file of costs (of "
        "attention by KV groups, of FFN by channels)."
    ),
]

# What is scored, and how.
Mode = Annotated[str | None, Option(help="Variant of the method.")]
Coarse = Annotated[str | None, Option(help="hywia: gate or vector.")]
Fine = Annotated[str | None, Option(help="hywia: first, second or mix.")]
Reduce = Annotated[
    str | None, Option(help="Gradient scores over coupled tensors: sum, mean, max, prod, last.")
]
Select = Annotated[
    str | None,
    Option(
        help="What of equal widths stays: by score, or obs (what others cannot replace; the default "
        "where a repair refits them)."
    ),
]
KvCost = Annotated[str, Option(help="KV groups by score, or measured: the loss without each.")]

# Which widths may come out.
Align = Annotated[
    int | None,
    Option(
        help="FFN widths are multiples of this (by default of the widest of 256, 128, .. 8 that comes "
        "within half a point of the target; where none does, of 4, 2 or 1)."
    ),
]
Protect = Annotated[str, Option(help="Blocks left whole, such as 0,1,-1 (layout per-layer).")]
TensorParallel = Annotated[
    int, Option("--tp", help="Tensor-parallel devices the widths must divide by.")
]
Container = Annotated[str, Option(help="auto, or the model type to write.")]
Layout = Annotated[
    str,
    Option(
        help="uniform: equal blocks, loads everywhere; per-layer: widths of their own, loads with "
        "trust_remote_code; padded: the same with zeros, for evaluation; all."
    ),
]

# Texts.
Calibration = Annotated[
    str,
    Option(
        help="Text to score, repair and train on: .txt, .json, .jsonl, stdlib, or a hub name.",
    ),
]
CalibrationAlso = Annotated[
    str | None,
    Option(help="A second text, as many tokens of it: the model's own, which `generate` writes."),
]
Evaluation = Annotated[
    str | None,
    Option(
        help="Text to measure results on, or none; by default the end of the calibration text, which "
        "is set aside for that."
    ),
]
Range = Annotated[str | None, Option(help="Its documents or windows A:B.")]
Samples = Annotated[
    int | None,
    Option(help="Calibration sequences (as many as come to 65,536 tokens by default)."),
]
Length = Annotated[int, Option(help="Tokens of a sequence.")]

# What is done about the damage.
Repair = Annotated[
    str,
    Option(
        help="Refit what stays: ridge; refine (then train each block); ridge-local, bias, none."
    ),
]
RefineEpochs = Annotated[
    int | None,
    Option(help="Passes over the calibration text in which refine trains a block (default 1)."),
]

# The machine and the job.
Device = Annotated[str | None, Option(help="cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, Option(help="auto, float32, bfloat16 or float16.")]
MaxMemory = Annotated[
    str | None,
    Option(help="Memory to count on, such as 8GB: what is too large beside it goes to files."),
]
WorkDir = Annotated[Path | None, Option(help="Where scores and plans are kept meanwhile.")]
Seed = Annotated[int, Option(help="Of all that is drawn.")]
Verify = Annotated[bool, Option(help="Reload the result in a fresh process and compare.")]
Resume = Annotated[bool, Option(help="Go on with an interrupted job.")]
Overwrite = Annotated[bool, Option(help="Replace DEST.")]
Json = Annotated[bool, Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, Option(help="No progress lines.")]
