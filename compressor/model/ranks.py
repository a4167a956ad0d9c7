"""Ranks: the processes of one job, which share out the calibration text and add up what they find.

Each runs the same passes over the same blocks, on its own part of the sequences; where a sum over
tokens is complete, it becomes the sum over all ranks. A decision is the first rank's, and told to the
others. In a single process, `ALONE`, all of this is nothing.
"""

import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from compressor.config.ranks import place_on_machine, rank, world
from compressor.errors import InputError, MachineError
from compressor.model.pulse import Pulse

Item = TypeVar("Item")
Found = TypeVar("Found")

JOINING = timedelta(seconds=60)
WORKING = timedelta(days=30)  # of one exchange: who is lost is found out otherwise (`pulse.py`)
AT_ONCE = 1 << 22  # numbers that are exchanged at once
# Seconds: so long one looks often, and how often then and later.
SOON, SHORT, LONG = 0.02, 5e-5, 2e-3


class Alone:
    """One process."""

    rank, world = 0, 1

    @property
    def first(self) -> bool:
        """Whether this is the one that decides, and writes."""
        return self.rank == 0

    def share(self, items: list[Item]) -> list[Item]:
        """This rank's part of the items: as many as others have, or one more or less, in their order."""
        return items[self.part(len(items))]

    def part(self, count: int) -> slice:
        """Which of so many things are this rank's."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def check(self) -> None:
        """Raise what keeps the ranks from going on, if anything does."""

    def all_sum(self, *tensors: torch.Tensor) -> None:
        """Every tensor becomes its sum over the ranks, added up in their order, the same bits in all."""

    def total(self, number: float) -> float:
        """Its sum over the ranks."""
        box = torch.tensor(number, dtype=torch.float64)
        self.all_sum(box)
        return box.item()

    def together(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        """So many rows, of which every rank gives its part."""
        return rows

    def same(self, *tensors: torch.Tensor) -> None:
        """Every tensor becomes what it is in the first rank."""

    def told(self, make: Callable[[], Found]) -> Found:
        """What the first rank makes; the others do not call `make`."""
        return make()

    def gathered(self, mine: Item) -> list[Item]:
        """What every rank has made, in their order."""
        return [mine]

    def agree(self, said: dict[str, str]) -> None:
        """`InputError` where a rank says something else than the first under any of these names."""

    def counts(self, count: int) -> list[int]:
        """A number of every rank."""
        counts = torch.zeros(self.world, dtype=torch.int64)
        counts[self.rank] = count
        self.all_sum(counts)
        return counts.tolist()


ALONE = Alone()


class Ranks(Alone):
    """One of several processes, joined to the others (`join`)."""

    def __init__(self, store: dist.Store, rank: int, world: int):
        self.store, self.rank, self.world = store, rank, world
        self.pulse = Pulse(dist.PrefixStore("pulse", store), rank, world)

    def check(self) -> None:
        self.pulse.check()

    @torch.no_grad()
    def all_sum(self, *tensors: torch.Tensor) -> None:
        for tensor in tensors:
            flat = tensor.reshape(-1)
            for part in flat.split(AT_ONCE):
                parts = [torch.empty_like(part) for _ in range(self.world)]
                self._exchanged(dist.all_gather, parts, part)
                total = parts[0]
                for other in parts[1:]:
                    total += other
                part.copy_(total)
            tensor.copy_(flat.view(tensor.shape))

    def together(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        whole = rows.new_zeros(count, *rows.shape[1:])
        whole[self.part(count)] = rows
        self.all_sum(whole)
        return whole

    @torch.no_grad()
    def same(self, *tensors: torch.Tensor) -> None:
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            self._exchanged(dist.broadcast, whole, 0)
            tensor.copy_(whole)

    def told(self, make: Callable[[], Found]) -> Found:
        box: list[Any] = [make() if self.first else None]
        self._exchanged(dist.broadcast, torch.zeros(1), 0)  # so long the others wait
        try:
            dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
        except RuntimeError as error:
            raise self.pulse.explained(error) from error
        return box[0]

    def gathered(self, mine: Item) -> list[Item]:
        self.counts(0)  # so long those wait who are done
        every: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(every, mine)
        except RuntimeError as error:
            raise self.pulse.explained(error) from error
        return every

    def agree(self, said: dict[str, str]) -> None:
        self.store.set(f"said {self.rank}", json.dumps(said))
        every = [json.loads(self._heard(f"said {other}")) for other in range(self.world)]
        for name, mine in every[0].items():
            for other, theirs in enumerate(every):
                if theirs.get(name) != mine:
                    raise InputError(
                        f"Rank {other} has {name} {theirs.get(name)}, and rank 0 has {mine}; start "
                        "all ranks with the same."
                    )

    def _exchanged(self, exchange: Callable, *given: Any) -> None:
        """Wait for it; a signal or another rank's trouble ends that."""
        begun = time.monotonic()
        try:
            work = exchange(*given, async_op=True)
            while not work.is_completed():
                self.check()
                time.sleep(SHORT if time.monotonic() - begun < SOON else LONG)
            work.wait()
        except RuntimeError as error:
            raise self.pulse.explained(error) from error

    def _heard(self, key: str) -> bytes:
        """What stands in the store, once it does."""
        while not self.store.check([key]):
            self.check()
            time.sleep(LONG)
        return self.store.get(key)


def join(cuda: bool) -> Ranks:
    """Meet the other processes that torchrun has started. cuda: sums lie on GPUs, one of each rank."""
    mine, several = rank(), world()
    if cuda and place_on_machine() >= torch.cuda.device_count():
        raise InputError(
            f"Rank {mine} is number {place_on_machine()} of its machine, which has "
            f"{torch.cuda.device_count()} GPUs; start one rank for each GPU, or give --device cpu."
        )
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=JOINING))
        store.set(f"here {mine}", "")
        store.wait([f"here {other}" for other in range(several)], JOINING)
    except ValueError as error:
        raise InputError(
            f"WORLD_SIZE is {several}, and not all that goes with it is set ({error}); start with "
            "torchrun."
        ) from error
    except RuntimeError as error:
        raise MachineError(
            f"Of {several} ranks not all came within {JOINING.seconds} s; start all of them, with the "
            "same MASTER_ADDR and MASTER_PORT."
        ) from error
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    group = dist.PrefixStore("group", store)
    dist.init_process_group(backend, store=group, rank=mine, world_size=several, timeout=WORKING)
    return Ranks(store, mine, several)
