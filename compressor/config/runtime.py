"""The machine that a job runs on, and how it begins and ends."""

from dataclasses import dataclass
from pathlib import Path

from compressor.config.amounts import parse_ratio, parse_size
from compressor.config.choices import DTYPES
from compressor.config.options import at_least, option


@dataclass(frozen=True)
class Runtime:
    device: str | None = option(
        None, "--device", "cpu, cuda, cuda:1, ...; by default a GPU if one is there."
    )
    dtype: str = option(
        "auto",
        "--dtype",
        f"To compute in: {', '.join(DTYPES[:-1])} or {DTYPES[-1]}; auto is as stored.",
    )
    max_memory: float | None = option(
        None,
        "--max-memory",
        "Memory that may be used, such as 8GB; activations that do not fit go to files.",
        parse=parse_size,
    )
    work_dir: Path | None = option(
        None,
        "--work-dir",
        "Folder for scores, plans and activations while the job runs.",
        parse=Path,
    )
    seed: int = option(0, "--seed", "Random seed.", at_least(0))
    max_perplexity_ratio: float | None = option(
        3.0,
        "--max-perplexity-ratio",
        "Reject a result whose perplexity is more than this many times the source's; or off.",
        parse=parse_ratio,
    )
    verify: bool = option(
        True, "--verify", "Load the result in a fresh process and compare its logits."
    )
    resume: bool = option(False, "--resume", "Go on with an interrupted job.")
    overwrite: bool = option(False, "--overwrite", "Replace DEST.")
