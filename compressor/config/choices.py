"""What some options choose between, as data: known before torch is imported, which takes seconds.

What the words do is said where it is done: `planning/allocation.py`, `scoring/selection.py`,
`job/opening.py`. Methods and repairs are tables of their own (`scoring/methods`,
`repair.py`), and as light.
"""

from dataclasses import dataclass

from compressor.errors import InputError

STATISTICS = ("dense", "pruned")
NO_EVALUATION = "none"
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Allocation:
    """What is to be known of a way to find widths before it is gone.

    alike, unlike: whether it finds widths that are equal in all blocks, and that are not.
    measured: whether it compares measured errors of cuts, and is judged by held-back text.
    probing: whether it needs the loss of the model with cuts. rule: of `planning/alignment.py`.
    """

    alike: bool = True
    unlike: bool = True
    measured: bool = False
    probing: bool = False
    rule: str = "compared"

    def equal(self, alike: bool) -> bool:
        """Whether all blocks get the same widths, if they may (alike) be asked to."""
        return self.alike and (alike or not self.unlike)


ALLOCATIONS = {
    "uniform": Allocation(unlike=False, rule="solved"),
    "global": Allocation(alike=False, rule="own"),
    "exact": Allocation(measured=True),
    "measured": Allocation(measured=True, probing=True),
    "besa": Allocation(measured=True),
}


def check_allocation(how: str) -> None:
    if how not in ALLOCATIONS:
        *names, last = ALLOCATIONS
        raise InputError(f"--allocate is {', '.join(names)} or {last}, not {how!r}.")


def check_statistics(seen: str) -> None:
    if seen not in STATISTICS:
        raise InputError(f"statistics must be {' or '.join(STATISTICS)}, not {seen!r}.")


def check_dtype(asked: str) -> None:
    if asked not in DTYPES:
        raise InputError(f"--dtype is {', '.join(DTYPES)}, not {asked!r}.")


def check_selection(select: str, kv_cost: str) -> None:
    for option, asked, known in (
        ("--select", select, ("score", "obs")),
        ("--kv-cost", kv_cost, ("score", "measured")),
    ):
        if asked not in known:
            raise InputError(f"{option} is {' or '.join(known)}, not {asked!r}.")
