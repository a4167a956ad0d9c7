"""How units are scored. None: the best choice that goes with the rest (`job/resolve.py`)."""

from dataclasses import dataclass

from compressor.config.options import one_of, option


@dataclass(frozen=True)
class ScoreConfig:
    """The method, its variant, and what is made of its scores."""

    method: str | None = option(
        None,
        "--method",
        "What scores the units: {methods}; METHOD:MODE for a variant.",
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
        "What blocks read while they are scored: the output of dense or of pruned blocks.",
    )
    select: str | None = option(
        None,
        "--select",
        "Which units stay. score: those with the best. obs: those that the others can replace least "
        "(the default where a repair refits the others).",
    )
    experts: str = option(
        "whole",
        "--experts",
        "What goes of a mixture of experts: whole ones, or channels, as many of each of them.",
        one_of("whole", "channels"),
    )
    kv_cost: str = option(
        "score",
        "--kv-cost",
        "How KV groups are judged. score: as all units. measured: by the model's loss without each.",
    )

    @property
    def grains(self) -> dict[str, str | None]:
        """What was said of how gradients are weighed (`scoring/methods/grains.py`)."""
        return {"coarse": self.coarse, "fine": self.fine, "reduce": self.reduce}

    @property
    def within_experts(self) -> bool:
        return self.experts == "channels"

    @property
    def needs_text(self) -> bool:
        """Whether the selection looks at activations."""
        return (self.select or "score", self.kv_cost) != ("score", "score")
