"""What `--granularity weight` was asked for, and what does not go with it."""

from dataclasses import dataclass, field, fields
from importlib.util import find_spec

from compressor.config.options import check_value, one_of, option
from compressor.errors import InputError

METHODS = ("besa", "sparsegpt", "wanda", "magnitude")
DEFAULT_METHOD = "besa"


@dataclass(frozen=True)
class Learning:
    """How BESA learns; every combination is possible.

    sharing     `row` or `layer`: what has a distribution of its own
    parity      smoothing, start, end and the optimizer's settings as the authors' program has them
    optimizer   `adamw` or `prodigy`
    sampling    `none`, or `categorical`: the cuts of each step are drawn
    target      `pruned`: what the dense block makes of its inputs on the pruned path; `dense`: what
                it makes of those on the dense path
    """

    sharing: str = "row"
    parity: bool = False
    optimizer: str = "adamw"
    sampling: str = "none"
    target: str = "dense"


@dataclass(frozen=True)
class Recipe:
    """What to do to every block.

    sparsity: the share of the projections' weights to zero, between 0 and 1. update: `none`, or
    `obs`: what BESA leaves is corrected. group: BESA quantises to 4 bits too, with a learned scale
    for so many input channels.
    """

    method: str
    sparsity: float
    update: str = "none"
    besa: Learning = field(default_factory=Learning)
    seed: int = 0
    group: int | None = None

    @property
    def corrects(self) -> bool:
        """Whether weights that stay are changed."""
        return self.method == "sparsegpt" or self.update == "obs" or self.group is not None

    @property
    def learns(self) -> bool:
        return self.method == "besa"

    @property
    def wants_dense_path(self) -> bool:
        return self.learns and self.besa.target == "dense"


@dataclass(frozen=True)
class Weights:
    """The options of pruning single weights, with their names and help on the command line.

    None is an option that was not given.
    """

    granularity: str = option(
        "channel",
        "--granularity",
        "What goes: channel (smaller tensors), or weight (zeros in tensors of the same shape).",
        one_of("channel", "weight"),
    )
    sparsity: float | None = option(
        None,
        "--sparsity",
        "Share of the blocks' projection weights to zero.",
        ("between 0 and 1", lambda x: 0 < x < 1),
    )
    update: str | None = option(
        None,
        "--update",
        "besa: none, or obs to correct the weights that stay (SparseGPT's update).",
        one_of("none", "obs"),
    )
    sharing: str | None = option(
        None,
        "--besa-sharing",
        "Learn a sparsity for each row, or one for each layer's matrix: row (default) or layer.",
        one_of("row", "layer"),
    )
    parity: bool = option(
        False,
        "--besa-parity",
        "Smoothing, optimizer, target and end as the authors' program has them.",
    )
    optimizer: str | None = option(
        None,
        "--besa-optimizer",
        "adamw (default), or prodigy (the default with --besa-parity).",
        one_of("adamw", "prodigy"),
    )
    sampling: str | None = option(
        None,
        "--besa-sampling",
        "none (default), or categorical: each step's mask, or width of channels, is drawn.",
        one_of("none", "categorical"),
    )
    target: str | None = option(
        None,
        "--besa-target",
        "What a block should make of its inputs: what the dense block makes of them (pruned), or of "
        "those that the dense blocks before it give (dense, the default).",
        one_of("pruned", "dense"),
    )

    @property
    def single(self) -> bool:
        """Whether single weights go, and not channels."""
        return self.granularity == "weight"

    def recipe(self, method: str, seed: int) -> Recipe:
        sharing = self.sharing or "row"
        # So in the published scripts.
        target = "pruned" if self.parity and sharing == "row" else "dense"
        return Recipe(
            method=method,
            sparsity=self.sparsity,
            update=self.update or "none",
            besa=Learning(
                sharing=sharing,
                parity=self.parity,
                optimizer=self.optimizer or ("prodigy" if self.parity else "adamw"),
                sampling=self.sampling or "none",
                target=self.target or target,
            ),
            seed=seed,
        )

    def given(self) -> list[str]:
        """The flags of what was given besides --granularity."""
        return [
            f.metadata["flag"]
            for f in fields(self)
            if f.name != "granularity" and getattr(self, f.name) not in (None, False)
        ]

    def check(self, method: str) -> None:
        """Refuse values that cannot be, and options of weights where channels go or another method."""
        for each in fields(self):
            check_value(each, getattr(self, each.name))
        if not self.single:
            # Widths of channels can be learned by samples, too: see `job/checks.py`.
            others = [flag for flag in self.given() if flag != "--besa-sampling"]
            if others:
                raise InputError(
                    f"{others[0]} is for single weights; add --granularity weight, or leave it out."
                )
            return
        if method not in METHODS:
            raise InputError(
                f"The method {method!r} does not prune single weights; --granularity weight has "
                f"{', '.join(METHODS)}."
            )
        if self.sparsity is None:
            raise InputError("Say how many weights go: --sparsity 0.5.")
        others = [flag for flag in self.given() if flag != "--sparsity"]
        if method != "besa" and others:
            raise InputError(f"{others[0]} is for the method besa, and not for {method}.")
        if self.recipe(method, 0).besa.optimizer == "prodigy" and not find_spec("prodigyopt"):
            raise InputError(
                "--besa-optimizer prodigy, which --besa-parity takes too, needs the package prodigyopt: "
                "pip install 'compressor-llm[prodigy]'. Or add --besa-optimizer adamw."
            )
