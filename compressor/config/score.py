"""How units are scored. None: the best choice that goes with the rest (`job/resolve.py`)."""

from dataclasses import dataclass

from compressor.config.options import option


@dataclass(frozen=True)
class ScoreConfig:
    """The method, its variant, and what is made of its scores."""

    method: str | None = option(
        None,
        "--method",
        "llm-bip (default), besa, hywia, taylor, taylor-vector, taylor-mix, kfac, mask-fisher, wanda-sp,"
        " magnitude or random; METHOD:MODE for a variant of it.",
    )
    mode: str | None = option(None, "mode", "Variant of the method.")
    coarse: str | None = option(None, "coarse", "hywia: gate or vector.")
    fine: str | None = option(None, "fine", "hywia: first, second or mix.")
    reduce: str | None = option(
        None, "reduce", "Gradient scores over coupled tensors: sum, mean, max, prod or last."
    )
    statistics: str = option(
        "dense",
        "statistics",
        "What blocks see while they are scored: dense or pruned blocks' output.",
    )
    select: str | None = option(
        None,
        "--select",
        "Which units stay: those of the best score, or obs, those that the others replace worst (the "
        "default where a repair refits the others).",
    )
    kv_cost: str = option(
        "score",
        "--kv-cost",
        "KV groups by their score, or measured: by the loss of the model without each of them.",
    )

    @property
    def grains(self) -> dict[str, str | None]:
        """What was said of how gradients are weighed (`scoring/methods/grains.py`)."""
        return {"coarse": self.coarse, "fine": self.fine, "reduce": self.reduce}

    @property
    def needs_text(self) -> bool:
        """Whether the selection looks at activations."""
        return (self.select or "score", self.kv_cost) != ("score", "score")
