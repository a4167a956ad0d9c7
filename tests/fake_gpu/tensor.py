"""A tensor that says it is on `cuda:1`, and whose numbers are in ordinary memory.

Whatever torch computes with it is computed on the CPU, and told to the `LEDGER`: kernels, copies between
host and device, and calls in which the host waits for the device. What a GPU would refuse is refused:
tensors of two devices in one operation, and a tensor that another stream may still be writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from fake_gpu.ledger import LEDGER
from fake_gpu.streams import current_stream
from torch.utils._pytree import tree_map

DEVICE = torch.device("cuda", 1)

ALLOCATING = {"empty", "empty_strided", "new_empty", "new_empty_strided", "empty_like"}
# Whose result, or whose size of it, the host must know.
WAITING = {
    "_local_scalar_dense",
    "_linalg_check_errors",
    "masked_select",
    "nonzero",
    "equal",
    "is_nonzero",
    "unique_dim",
    "unique_consecutive",
    "_unique",
    "_unique2",
    "bincount",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class FakeGpuTensor(torch.Tensor):
    """Made by `on_gpu` alone; `born` is the stream that wrote it, and when."""

    born: tuple

    __torch_function__ = torch._C._disabled_torch_function_impl

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return DEVICE.index

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False):
        if not force:
            raise TypeError("can't convert cuda:1 device type tensor to numpy.")
        return self.cpu().numpy()

    def __array__(self, *_):
        return self.numpy()

    def __repr__(self) -> str:
        return f"FakeGpuTensor{tuple(self.shape)}"

    def pin_memory(self):
        raise RuntimeError("cannot pin a tensor of cuda:1; only dense CPU tensors can be pinned")

    def is_pinned(self) -> bool:
        return False

    def record_stream(self, stream) -> None:
        self.recorded = {*getattr(self, "recorded", ()), stream}

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), keywords=None):
        keywords = keywords or {}
        name = function.overloadpacket.__name__
        tensors = [*tensors_in((*args, *keywords.values()))]
        given = [x for x in tensors if isinstance(x, FakeGpuTensor)]
        if len(given) < len(tensors):
            check_devices(function, name, args, tensors)
        current_stream().reads(given)
        if name == "copy_" and comes_late(*args):
            into, source = args[:2]
            LEDGER.note("to_device", name, source.nbytes)
            current_stream().later(lambda: plain(into).copy_(source))
            into.born = current_stream().now()
            return into
        if function.namespace == "aten":
            with torch._C._DisableTorchDispatch():
                result = function(*args, **keywords)
        else:  # written in Python, which asks a tensor where it is
            result = function(*tree_map(plain, args), **tree_map(plain, keywords))
        account(function, name, args)
        if isinstance(result, torch.Tensor):
            return on_gpu(result)
        return tree_map(on_gpu, result)


def on_gpu(x):
    """The same memory, said to be the device's, written just now; what is no tensor stays."""
    if isinstance(x, FakeGpuTensor):
        x.born = current_stream().now()
        return x
    if not isinstance(x, torch.Tensor):
        return x
    fake = torch.Tensor._make_subclass(FakeGpuTensor, x)
    fake.born = current_stream().now()
    return fake


def plain(x):
    """The memory of a fake tensor as an ordinary tensor, for those who copy or compute."""
    if not isinstance(x, FakeGpuTensor):
        return x
    with torch._C._DisableTorchDispatch():
        return torch.Tensor.as_subclass(x, torch.Tensor)


def tensors_in(arguments) -> Iterator[torch.Tensor]:
    """The tensors among arguments, and in lists of them."""
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from tensors_in(argument)


def check_devices(function, name: str, args, tensors: list[torch.Tensor]) -> None:
    """As CUDA has it: numbers may come from the host, and indices, which are copied for it."""
    if name == "copy_":
        return
    foreign = [x for x in tensors if not isinstance(x, FakeGpuTensor) and x.dim()]
    if name in INDEXING and isinstance(args[0], FakeGpuTensor):
        for _ in foreign:
            LEDGER.note("to_device", name)
        return
    if foreign:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {function} got some of the GPU and "
            f"some of the CPU, of shapes {[tuple(x.shape) for x in foreign]}."
        )


def account(function, name: str, args) -> None:
    """What the device and the host would have had to do."""
    if name == "copy_":
        into, source = args[:2]
        copied(source, into, waits=not (len(args) > 2 and args[2]))
    elif name in WAITING or (name in INDEXING and chosen_by_mask(args)):
        LEDGER.note("waits", name)
    elif name not in ALLOCATING and not is_view(function):
        LEDGER.note("kernels", name)


def chosen_by_mask(args) -> bool:
    return any(x.dtype == torch.bool for x in tensors_in(args[1]))


def comes_late(into, source, non_blocking: bool = False) -> bool:
    """Whether a copy is out of pinned memory, and the host does not wait for it."""
    here, there = (isinstance(x, FakeGpuTensor) for x in (into, source))
    return bool(non_blocking) and here and not there and source.is_pinned()


def copied(source: torch.Tensor, into: torch.Tensor, waits: bool) -> None:
    here, there = (isinstance(x, FakeGpuTensor) for x in (into, source))
    if here and there:
        LEDGER.note("kernels", "copy_")
    elif here:
        LEDGER.note("to_device", "copy_", source.nbytes)
    else:
        LEDGER.note("to_host", "copy_", source.nbytes)
        if waits:
            LEDGER.note("waits", "copy_")


@cache
def is_view(function) -> bool:
    """Whether nothing is computed: the result is the argument's memory, unwritten."""
    returns = function._schema.returns
    aliases = [r.alias_info for r in returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)
