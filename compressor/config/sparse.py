"""What `sparsify` was asked for: zeros in the place of single weights."""

from dataclasses import dataclass, field
from importlib.util import find_spec

from compressor.config.options import check_values, given_options, one_of, option
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
class SparseConfig:
    """The options of zeroing single weights, with their names and help on the command line.

    None is an option that was not set.
    """

    sparsity: float | None = option(
        None,
        "--sparsity",
        "Share of the weights of the blocks' projections that become zero.",
        ("between 0 and 1", lambda x: 0 < x < 1),
    )
    method: str = option(
        DEFAULT_METHOD,
        "--method",
        "What chooses the weights: besa (default), sparsegpt, wanda or magnitude.",
    )
    update: str | None = option(
        None,
        "--update",
        "With besa: none, or obs, which corrects the weights that stay (SparseGPT's update).",
        one_of("none", "obs"),
    )
    sharing: str | None = option(
        None,
        "besa_sharing",
        "Learn a sparsity for each row, or one for each layer's matrix: row (default) or layer.",
        one_of("row", "layer"),
    )
    parity: bool = option(
        False,
        "besa_parity",
        "Smoothing, optimizer, target and end as the authors' program has them.",
    )
    optimizer: str | None = option(
        None,
        "besa_optimizer",
        "adamw (default), or prodigy (the default with besa_parity).",
        one_of("adamw", "prodigy"),
    )
    sampling: str | None = option(
        None,
        "besa_sampling",
        "none (default), or categorical: the mask of each step is drawn.",
        one_of("none", "categorical"),
    )
    target: str | None = option(
        None,
        "besa_target",
        "What a block should make of its inputs: what the dense block makes of them (pruned), or of "
        "those that the dense blocks before it give (dense, the default).",
        one_of("pruned", "dense"),
    )

    def recipe(self, seed: int = 0) -> Recipe:
        sharing = self.sharing or "row"
        # So in the published scripts.
        target = "pruned" if self.parity and sharing == "row" else "dense"
        return Recipe(
            method=self.method,
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

    def check(self) -> None:
        """Refuse values that cannot be, and options of another method."""
        check_values(self)
        if self.method not in METHODS:
            raise InputError(
                f"The method {self.method!r} does not zero single weights; sparsify has "
                f"{', '.join(METHODS)}."
            )
        if self.sparsity is None:
            raise InputError("Say how many weights become zero: --sparsity 0.5.")
        others = [flag for flag in given_options(self) if flag not in ("--sparsity", "--method")]
        if self.method != "besa" and others:
            raise InputError(f"{others[0]} is for the method besa, and not for {self.method}.")
        if self.recipe().besa.optimizer == "prodigy" and not find_spec("prodigyopt"):
            raise InputError(
                "The optimizer prodigy, which besa_parity takes too, needs the package prodigyopt: "
                "pip install 'compressor-llm[prodigy]'. In Python, besa_optimizer='adamw' needs none."
            )
