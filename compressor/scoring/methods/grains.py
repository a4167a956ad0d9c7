"""Which importance HyWIA and the Taylor methods weigh, as data; what the words mean: `hywia.py`."""

from dataclasses import dataclass

from compressor.errors import InputError

COARSE = {"gate": "signed", "vector": "vector"}
FINE = {"first": "absolute", "second": "square", "mix": "absolute"}
# Products are of any size: their order is that of the geometric mean, which keeps the scale.
REDUCTIONS = {
    "sum": lambda modules: modules.sum(0),
    "mean": lambda modules: modules.mean(0),
    "max": lambda modules: modules.amax(0),
    "prod": lambda modules: modules.log().mean(0).exp(),
    "last": lambda modules: modules[-1],
}


@dataclass(frozen=True)
class Grains:
    """Which coarse and fine importance, how coupled modules are reduced, and of which gradient.

    gradient: `sequences` (one after the other) or `mean` (of the calibration set, as published).
    """

    coarse: str = "gate"
    fine: str = "first"
    reduce: str = "sum"
    gradient: str = "sequences"

    def __post_init__(self) -> None:
        for name, known in (("coarse", COARSE), ("fine", FINE), ("reduce", REDUCTIONS)):
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"--{name} is one of {', '.join(known)}, not {value!r}.")

    def sources(self) -> set[str]:
        return {self.gradient, "mix"} if self.fine == "mix" else {self.gradient}
