"""How small a model can become, and what of it no cut can touch: embedding and head.

Shares of all parameters and of the blocks' weights differ by what is outside the blocks. In a model
that is mostly embedding, 0.9 of all can be 0.7 of the blocks, and 0.7 of all impossible: so it is said
where `MUCH` of the parameters or more are outside. From there on the 0.3 that `--keep 0.7` takes away
are 0.4 of the blocks or more, which is another cut than its name says.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.config.target import Target
from compressor.model.heads import why_refused
from compressor.model.source import Source
from compressor.planning.costs import Costs, aim_of, reached
from compressor.planning.lattice import Lattice

MUCH = 0.25
SHARES = {"keep": "all parameters", "keep-blocks": "the blocks' weights"}


@dataclass(frozen=True)
class Reach:
    """Parameters of a model and of what is outside its blocks, and the least shares that can stay."""

    parameters: int
    outside: int
    tied: bool  # one matrix is embedding and head
    align: int  # what FFN widths are multiples of
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
        what, verb = ("The embedding", "is") if self.tied else ("Embedding and head", "are")
        share = f"{self.outside / self.parameters:.0%}"
        return f"{what} {verb} {counts} parameters ({share}) and {verb} never cut"

    def reachable(self) -> str:
        """In both units; rounded by less than a result may miss a share by."""
        steps = f" with FFN widths in multiples of {self.align}" if self.align > 1 else ""
        return (
            f"reachable{steps} are {self.keep:.2g} to 1 of all parameters ({self.keep_blocks:.2g} to 1 "
            "of the blocks')"
        )

    def described(self) -> dict:
        """For a record: counts and shares."""
        return {
            "parameters": self.outside,
            "share": self.outside / self.parameters,
            "least_keep": self.keep,
            "least_keep_blocks": self.keep_blocks,
        }


def reach_of(checkpoint: Source, lattice: Lattice, protect: Sequence[int] = ()) -> Reach:
    """What can be reached on a lattice with these blocks protected, from the headers alone."""
    costs = Costs.of(checkpoint)
    least = costs.size(least_widths(costs, lattice, protect), "params")
    outside = sum(checkpoint.tensors[name].numel for name in checkpoint.outer_tensors())
    shares = (reached(Target(kind, 1), costs, least) for kind in ("keep", "keep-blocks"))
    return Reach(checkpoint.whole.parameters, outside, checkpoint.tied, lattice.align, *shares)


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
    shares = [
        f"{target.flag} is {in_the_other_unit(target, costs)}"
        for target in targets
        if target.measure in ("params", "bytes")
    ]
    said = ": ".join(filter(None, (reach.embedding(), ", ".join(shares))))
    return [f"{said}; {reach.reachable()}."]


def in_the_other_unit(target: Target, costs: Costs) -> str:
    """What a share of all parameters, or a bound, is of the blocks' weights, and the other way round."""
    size = aim_of(target, costs)[0] * costs.total["params"] / costs.total[target.measure]
    kind = "keep" if target.kind == "keep-blocks" else "keep-blocks"
    share = reached(Target(kind, 1), costs, size)
    return f"{share:.2f} of {SHARES[kind]}" if share > 0 else "less than what is outside the blocks"


def refusal(
    target: Target,
    checkpoint: Source,
    costs: Costs,
    lattice: Lattice,
    protect: Sequence[int] = (),
) -> str:
    """Why a target cannot be reached on a lattice, and what can."""
    size = costs.size(least_widths(costs, lattice, protect), target.measure)
    reach = reach_of(checkpoint, lattice, protect)
    value = target.number(target.value) if target.hard else f"{target.value:g}"
    least = f"{size:,} {target.kind}" if target.hard else f"{reached(target, costs, size):.6g}"
    if target.measure in ("params", "flops") and not target.hard:
        least += f" ({size:,} {target.measure})"  # of a table the share says all
    said = f"The target {target.kind} {value} cannot be reached: the smallest possible is {least}"
    if reach.nothing:
        return f"{said}, since nothing can be cut."
    note = outside_note(reach, costs, [target]) or [f"{reach.reachable().capitalize()}."]
    return f"{said}. {note[0]}{heads_that_stay(checkpoint, lattice)}"


def heads_that_stay(checkpoint: Source, lattice: Lattice) -> str:
    """A sentence where FFN channels alone can go, with the reason."""
    if len(lattice.attention) > 1:
        return ""
    if checkpoint.family.experts and checkpoint.family.experts.split:
        shared = checkpoint.family.experts.shared_count
        divides = (
            f", and experts have widths that divide the shared one's ({shared})" if shared else ""
        )
        return f" The attention of a mixture of experts stays whole{divides}: keep more."
    if checkpoint.family.experts:
        routed = checkpoint.config[checkpoint.family.experts.per_token]
        groups, fewest = checkpoint.ffn_parts, lattice.ffn[0]
        each = f" (here {fewest}, as many in each of {groups} groups)" if groups > 1 else ""
        return (
            f" Every token is routed to {routed} experts (num_experts_per_tok), so no fewer can stay"
            f"{each}, and the attention stays whole: keep more."
        )
    alone = "so FFN channels alone go: keep more."
    if checkpoint.units["attention"] == 1:
        return f" A block has one KV group, which stays, {alone}"
    if reason := why_refused(checkpoint, {1}):
        return f" {reason}"
    return f" With these options no KV group can go, {alone}"
