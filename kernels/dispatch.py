"""One operator, several implementations: registration with torch, defaults, forced backends.

    ref     plain PyTorch: the definition, everywhere, any float dtype
    triton  a Triton kernel: CUDA, or a CPU in Triton's interpreter
    ext     the C++/CUDA extension

Calling an `Op` runs the device's default, through torch's dispatcher where that may have a say, so fake
tensors and `torch.compile` work. float64 runs the reference, which is there to judge the others; but for
operators that are `wide`.
`COMPRESSOR_BACKEND=ref` makes the reference the default everywhere.
"""

import logging
import os
from collections.abc import Callable
from functools import cache

import torch

from compressor.kernels import native, triton_support
from compressor.kernels.observers import find_observers

LIBRARY = torch.library.Library("compressor", "DEF")
BACKENDS = ("ref", "triton", "ext")
EVERYWHERE = os.environ.get("COMPRESSOR_BACKEND")
if EVERYWHERE not in (None, *BACKENDS):
    raise ValueError(f"COMPRESSOR_BACKEND is {EVERYWHERE!r}; it is one of {', '.join(BACKENDS)}.")

PLAIN = (torch.Tensor, torch.nn.Parameter)
OBSERVERS = find_observers()

log = logging.getLogger("compressor.kernels")


class Op:
    """An operator `compressor::NAME`.

    schema: as `torch.library` writes it. Every implementation takes the schema's arguments.
    check:  raises on wrong arguments, reading shapes, dtypes and devices only.
    fake:   the outputs' shapes and dtypes, for tracing.
    cpu, cuda: the backend that is the default there; the reference where it cannot run.
    wide: whether every backend computes in float64 what is float64; else the reference alone does.
    """

    def __init__(
        self,
        schema: str,
        *,
        check: Callable,
        ref: Callable,
        fake: Callable,
        triton: Callable | None = None,
        ext: Callable | None = None,
        cpu: str = "ref",
        cuda: str = "ref",
        wide: bool = False,
    ):
        self.name, _, parameters = schema.partition("(")
        # The places of the arguments that it writes to.
        self.written = [i for i, each in enumerate(parameters.split(",")) if "!" in each]
        self.check, self.wide = check, wide
        self.implementations = {"ref": ref, "triton": triton, "ext": ext}
        self.defaults = {"cpu": cpu, "cuda": cuda}
        LIBRARY.define(schema)
        for key in ("CPU", "CUDA"):
            LIBRARY.impl(self.name, self._default, key)

        def checked_fake(*arguments, **keywords):
            check(*arguments, **keywords)
            return fake(*arguments, **keywords)

        torch.library.register_fake(f"compressor::{self.name}", checked_fake, lib=LIBRARY)
        self.overload = getattr(torch.ops.compressor, self.name).default

    def __call__(self, *arguments, backend: str | None = None):
        """Run the default, or exactly this backend; ValueError if that one cannot run here."""
        if backend is None:
            run = self._default if unobserved(tensors_in(arguments)) else self.overload
            return run(*arguments)
        if backend not in BACKENDS:
            raise ValueError(f"{self.name}: backend is {backend!r}; one of {', '.join(BACKENDS)}.")
        self.check(*arguments)
        tensors = tensors_in(arguments)
        if any(tensor.is_neg() or tensor.is_conj() for tensor in tensors):
            # Torch's dispatcher would have resolved it; the memory holds other numbers.
            raise ValueError(
                f"{self.name}: a tensor is negated or conjugated lazily, which backend {backend!r} "
                "would not see; call resolve_neg() or resolve_conj() on it."
            )
        device = device_of(tensors)
        reason, available = self.missing(backend, device), self.available(device)
        if self.needs_reference(tensors) and backend != "ref":
            reason, available = "float64 runs the reference only", ["ref"]
        if reason is not None:
            raise ValueError(
                f"{self.name}: backend {backend!r} cannot run on {device}: {reason}. "
                f"Available: {', '.join(available)}."
            )
        return self.run(backend, arguments)

    def run(self, backend: str, arguments):
        """Run an implementation; native code gets tensors as `native.aligned` has them."""
        if backend == "ext":
            for i in self.written:
                if arguments[i] is not None and native.astray(arguments[i]):
                    raise ValueError(
                        f"{self.name}: a tensor to write to does not begin at a multiple of its "
                        "elements' size."
                    )
            arguments = [native.aligned(argument) for argument in arguments]
        return self.implementations[backend](*arguments)

    def missing(self, backend: str, device: str) -> str | None:
        """Why a backend cannot run on a device of this type; None if it can."""
        if self.implementations[backend] is None:
            return f"{self.name} has no {backend} implementation"
        if backend == "triton":
            return triton_support.missing(device)
        return native.missing(f"{self.name}_{device}") if backend == "ext" else None

    def available(self, device: str) -> list[str]:
        """The backends that run on a device of this type (`cpu` or `cuda`)."""
        return [b for b in BACKENDS if self.missing(b, device) is None]

    def needs_reference(self, tensors: list[torch.Tensor]) -> bool:
        return not self.wide and any(tensor.dtype == torch.float64 for tensor in tensors)

    def _default(self, *arguments):
        self.check(*arguments)
        tensors = tensors_in(arguments)
        device = device_of(tensors)
        backend = EVERYWHERE or self.defaults[device]
        if self.needs_reference(tensors):
            backend = "ref"
        elif (reason := self.missing(backend, device)) is not None:
            explain(device, reason)
            backend = "ref"
        return self.run(backend, arguments)


def unobserved(tensors: list[torch.Tensor]) -> bool:
    """Whether torch's dispatcher would only lead back here, which costs as much as a small op."""
    if OBSERVERS is None or torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    if any(at_work() for at_work in OBSERVERS):
        return False
    return all(
        type(t) in PLAIN and (t.is_cpu or t.is_cuda) and not (t.is_neg() or t.is_conj())
        for t in tensors
    )


@cache
def explain(device: str, reason: str) -> None:
    """Log a reason once, not once for every op that it stops."""
    log.warning("PyTorch references run on %s: %s.", device, reason)


def tensors_in(arguments) -> list[torch.Tensor]:
    """The tensors among the arguments and in lists of them."""
    found = []
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            found.append(argument)
        elif isinstance(argument, (list, tuple)):
            found += [item for item in argument if isinstance(item, torch.Tensor)]
    return found


def device_of(tensors: list[torch.Tensor]) -> str:
    """The device type of the first tensor."""
    if not tensors:
        raise ValueError("An operator was called without a tensor.")
    return tensors[0].device.type


def exact_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """What sums over such tensors are made in: float64 if one of them is, else float32."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32
