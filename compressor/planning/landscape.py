"""The landscape of a model's cuts, as data: measured errors of all widths, and what they are worth."""

from dataclasses import dataclass, field

import torch

from compressor.errors import InputError
from compressor.planning.lattice import Lattice
from compressor.scoring.scores import Measured, Scores

TENSORS = ("errors", "learned", "losses")
LEAST = 0.01  # of the mean scale


@dataclass
class Landscape:
    """errors[block] is float64 [numbers of groups, FFN widths], shares of the output's energy.

    attention, ffn: the numbers and widths, ascending, as in `Lattice`. about: the repair that the
    errors are after, the text, and the prices of `learned`. learned[block], where widths were learned,
    is float64 [prices, groups]: the mean number of units of each group that stay. losses[block], where
    measured, is float64 [cuts]: by how much each of `cuts`, [groups, channels], raises the loss.
    """

    errors: list[torch.Tensor]
    attention: list[int]
    ffn: list[int]
    about: dict = field(default_factory=dict)
    learned: list[torch.Tensor] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)
    cuts: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def of(cls, scores: Scores) -> "Landscape | None":
        """The landscape that was measured in the order of these scores, if one was."""
        if scores.measured is None:
            return None
        tensors: dict = {name: scores.measured.tensors.get(name, []) for name in TENSORS}
        try:
            return cls(**tensors, **scores.measured.about)
        except TypeError as error:  # by the names of what is missing, or unknown
            raise InputError(
                f"What is said of the measured cuts is not what this package writes ({error}); score "
                "again."
            ) from error

    def keep_with(self, scores: Scores) -> None:
        """Have it saved and loaded with the scores."""
        tensors = {name: values for name in TENSORS if (values := getattr(self, name))}
        scores.measured = Measured(self.described(), tensors)

    def described(self) -> dict:
        """Everything but what is measured, as JSON has it."""
        known = {"attention": self.attention, "ffn": self.ffn, "about": self.about}
        return known | {"cuts": self.cuts}

    def on(self, lattice: Lattice) -> list[torch.Tensor]:
        """The errors on another lattice, which must be a part of this one."""
        missing = sorted({*lattice.ffn} - {*self.ffn}) or sorted(
            {*lattice.attention} - {*self.attention}
        )
        if missing:
            raise InputError(
                f"The errors of cuts were measured on other widths, without {missing[0]}; "
                "score again with this --align, --tp and --container."
            )
        rows = torch.tensor([self.attention.index(n) for n in lattice.attention])
        columns = torch.tensor([self.ffn.index(n) for n in lattice.ffn])
        return [errors[rows][:, columns] for errors in self.errors]


def scaled(landscape: Landscape, lattice: Lattice) -> list[torch.Tensor]:
    """The errors of every block in nats, [numbers of groups, FFN widths]."""
    scales = []
    for errors, losses in zip(landscape.errors, landscape.losses, strict=True):
        places = [(landscape.attention.index(k), landscape.ffn.index(w)) for k, w in landscape.cuts]
        measured = torch.stack([errors[place] for place in places])
        scales.append((losses @ measured) / (measured @ measured).clamp_min(1e-30))
    scales = torch.stack(scales)
    # A loss that a cut happens not to raise must not make a block free.
    scales = scales.clamp_min(LEAST * scales.clamp_min(0).mean())
    return [s * errors for s, errors in zip(scales, landscape.on(lattice), strict=True)]
