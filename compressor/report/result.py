"""`Result`: everything that is said of one result, whichever job made it."""

from dataclasses import asdict, dataclass, field

from compressor.config.layouts import UNIFORM


@dataclass
class Result:
    """None is what was not asked for, or not measured.

    Of a cut: asked (the target), budget, *_reached (shares), align and align_wider, allocate and
    held_back (what was compared), dropped_blocks (by the source's numbers), hidden_size (where it was
    cut), repair, outside_blocks. Of
    zeros (granularity weight): update, sparsity_*, zeros, projections. perplexity_*: of the source, of
    the cut before a training, before 4 bits, and in the end. kl, agreement: how far predictions are from
    the source's. seconds: by stage. samples: beginnings with what source and result write after them, or
    no_samples, why there are none. loads: the engines that take it, as `inspect` says.
    """

    source: str
    dest: str
    model_type: str
    container: str
    parameters_before: int
    bytes_before: int
    parameters_after: int | None = None
    bytes_after: int | None = None
    method: str = "none"
    mode: str | None = None
    seed: int = 0
    granularity: str = "channel"
    layout: str = UNIFORM
    asked: dict | None = None
    keep_asked: str | None = None
    budget: str = "params"
    budget_reached: float | None = None
    keep_reached: float = 1.0
    keep_blocks_reached: float = 1.0
    align: int | None = None
    align_wider: dict | None = None
    allocate: str = "none"
    held_back: dict | None = None
    dropped_blocks: list[int] | None = None
    hidden_size: int | None = None
    repair: str = "none"
    outside_blocks: dict | None = None
    update: str | None = None
    sparsity_asked: float | None = None
    sparsity_reached: float | None = None
    zeros: int | None = None
    projections: dict | None = None
    perplexity_before: float | None = None
    perplexity_pruned: float | None = None
    perplexity_unquantized: float | None = None
    perplexity_after: float | None = None
    kl: float | None = None
    agreement: float | None = None
    recovery: dict | None = None
    quantization: dict | None = None
    warnings: list[str] = field(default_factory=list)
    verified: str = "no"
    seconds: dict[str, float] = field(default_factory=dict)
    peak_rss_bytes: int = 0
    peak_gpu_bytes: int = 0
    forecast: dict | None = None
    samples: list[dict] = field(default_factory=list)
    no_samples: str = ""
    loads: list[str] = field(default_factory=list)

    @property
    def rejected(self) -> bool:
        return self.verified == "rejected"

    def proven(self, proof: str) -> None:
        """One more proof that it is what it should be."""
        known = [self.verified] if self.verified not in ("", "no") else []
        self.verified = ", ".join([*known, proof])

    def measure(self, figures: dict | None) -> None:
        """Take in what `Reference.compared` says of it; None is nothing."""
        figures = figures or {}
        self.perplexity_after = figures.get("perplexity")
        self.kl, self.agreement = figures.get("kl"), figures.get("agreement")

    def told(self) -> dict:
        """As JSON has it."""
        return asdict(self)


# What compression.json says of a result besides how it was made.
KEPT = (
    *("keep_asked", "parameters_before", "parameters_after", "bytes_before", "bytes_after"),
    *(
        "dropped_blocks",
        "hidden_size",
        "align",
        "align_wider",
        "outside_blocks",
        "perplexity_before",
        "perplexity_pruned",
    ),
    *("perplexity_after", "perplexity_unquantized", "kl", "agreement", "verified"),
)
EMPTY = ("keep_asked", "perplexity_before", "perplexity_after", "kl", "agreement")


def kept_in_record(result: Result) -> dict:
    """The figures of a result for compression.json: those that it has, and where measurements are
    wanting, None.
    """
    empty = (*EMPTY, "align_wider") if result.align is not None else EMPTY
    figures = {name: getattr(result, name) for name in KEPT}
    return {name: value for name, value in figures.items() if value is not None or name in empty}
