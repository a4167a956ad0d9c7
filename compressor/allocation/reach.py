"""How small a model can become, and what of it no cut can touch: embedding and head.

Shares of all parameters and of the blocks' weights differ by what is outside the blocks. In a model
that is mostly embedding, 0.9 of all can be 0.7 of the blocks, and 0.7 of all impossible: so it is said
where `MUCH` of the parameters or more are outside. From there on the 0.3 that `--keep 0.7` takes away
are 0.4 of the blocks or more, which is another cut than its name says.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.checkpoint import Checkpoint
from compressor.lattice import Lattice
from compressor.plan import Costs, Target, aim_of, reached

MUCH = 0.25
SHARES = {"keep": "all parameters", "keep-blocks": "the blocks' weights"}


@dataclass(frozen=True)
class Reach:
    """Parameters of a model and of what is outside its blocks, and the least shares that can stay."""

    parameters: int
    outside: int
    tied: bool  # one matrix is embedding and head
    keep: float  # of all parameters
    keep_blocks: float  # of the blocks' weights

    @property
    def much(self) -> bool:
        return self.outside >= MUCH * self.parameters

    @property
    def nothing(self) -> bool:
        """Whether nothing can be cut."""
        return self.keep >= 1

    def embedding(self) -> str:
        """What is outside, in a sentence without its end."""
        if self.parameters < 1e7:
            counts = f"{self.outside:,} of {self.parameters:,}"
        else:
            counts = f"{self.outside / 1e6:.0f} of {self.parameters / 1e6:.0f} million"
        whole = "The embedding is" if self.tied else "Embedding and head are"
        never = "is" if self.tied else "are"
        share = f"{self.outside / self.parameters:.0%}"
        return f"{whole} {counts} parameters ({share}) and {never} never cut"

    def range(self) -> str:
        """In both units; rounded by less than a result may miss a share by."""
        return (
            f"{self.keep:.2g} to 1 of all parameters ({self.keep_blocks:.2g} to 1 of the blocks')"
        )

    def described(self) -> dict:
        """For a record: counts and shares."""
        return {
            "parameters": self.outside,
            "share": self.outside / self.parameters,
            "least_keep": self.keep,
            "least_keep_blocks": self.keep_blocks,
        }


def reach_of(checkpoint: Checkpoint, lattice: Lattice, protect: Sequence[int] = ()) -> Reach:
    """What can be reached on a lattice with these blocks protected, from the headers alone."""
    costs = Costs.of(checkpoint)
    least = costs.size(least_widths(costs, lattice, protect), "params")
    outside = sum(checkpoint.tensors[name].numel for name in checkpoint.outer_tensors())
    shares = (reached(Target(kind, 1), costs, least) for kind in ("keep", "keep-blocks"))
    return Reach(checkpoint.parameters, outside, checkpoint.tied, *shares)


def least_widths(costs: Costs, lattice: Lattice, protect: Sequence[int] = ()) -> list[dict]:
    """The narrowest widths of every block."""
    return [
        dict(units) if b in protect else {g: w[0] for g, w in lattice.of_block(units).items()}
        for b, units in enumerate(costs.block_units)
    ]


def outside_note(reach: Reach, costs: Costs, targets: Sequence[Target] = ()) -> list[str]:
    """Where much is outside the blocks: what targets are in the other unit, and what can be reached."""
    if not reach.much or reach.nothing:
        return []
    said = reach.embedding()
    shares = [
        f"{target.flag} leaves {in_the_other_unit(target, costs)}"
        for target in targets
        if target.measure in ("params", "bytes")
    ]
    if shares:
        said += f": {', '.join(shares)}"
    return [f"{said}; reachable are {reach.range()}."]


def in_the_other_unit(target: Target, costs: Costs) -> str:
    """What a share of all parameters, or a bound, is of the blocks' weights, and the other way round."""
    size = aim_of(target, costs)[0] * costs.total["params"] / costs.total[target.measure]
    kind = "keep" if target.kind == "keep-blocks" else "keep-blocks"
    share = max(0.0, reached(Target(kind, 1), costs, size))
    return f"{share:.2f} of {SHARES[kind]}"


def refusal(
    target: Target,
    checkpoint: Checkpoint,
    costs: Costs,
    lattice: Lattice,
    protect: Sequence[int] = (),
) -> str:
    """Why a target cannot be reached on a lattice, and what can."""
    size = costs.size(least_widths(costs, lattice, protect), target.measure)
    reach = reach_of(checkpoint, lattice, protect)
    # Of a table the share says all; parts of its whole are nobody's unit.
    counted = "" if target.measure == "parts" else f" ({size:,} {target.measure})"
    said = (
        f"The target {target.kind} {target.value:,g} cannot be reached: the smallest possible is "
        f"{reached(target, costs, size):,.6g}{counted}"
    )
    if reach.nothing:
        return f"{said}, since nothing can be cut."
    steps = f" with FFN widths in multiples of {lattice.align}" if lattice.align > 1 else ""
    said += f". Reachable{steps} are {reach.range()}."
    if reach.much:
        said += f" {reach.embedding()}."
    return said + heads_that_stay(checkpoint, lattice)


def heads_that_stay(checkpoint: Checkpoint, lattice: Lattice) -> str:
    """A sentence where FFN channels alone can go, with the reason."""
    if len(lattice.attention) > 1:
        return ""
    family, alone = checkpoint.family, "so FFN channels alone go: keep more."
    if family.heads_fixed and not family.alibi:
        return (
            f" The heads of {family.model_type} cannot be cut in its own format, whose class has "
            f"hidden size / heads channels a head, {alone}"
        )
    if checkpoint.units["attention"] == 1:
        return f" The heads of a block are one KV group, which goes as a whole or not, {alone}"
    return f" With these options no KV group can go, {alone}"
