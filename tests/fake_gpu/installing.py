"""`torch.cuda` and torch's ways onto a device, led to the fake one for the length of a test."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch
from fake_gpu import streams
from fake_gpu.ledger import LEDGER
from fake_gpu.tensor import DEVICE, FakeGpuTensor, on_gpu, plain

FACTORIES = (
    *("arange", "as_tensor", "empty", "empty_like", "empty_strided", "eye"),
    *("full", "full_like", "linspace", "ones", "ones_like", "rand"),
    *("rand_like", "randint", "randn", "randn_like", "randperm", "tensor"),
    *("zeros", "zeros_like"),
)
METHODS = ("new_empty", "new_full", "new_ones", "new_zeros", "new_tensor")
BYTES = 1 << 34  # of memory, all of it free
PINNED: list[tuple[int, int, torch.Tensor]] = []  # where it begins and ends


def is_gpu(device) -> bool:
    """Whether that names the device. The current one is another, as where a user asks for `cuda:1`."""
    if isinstance(device, int) and not isinstance(device, bool):
        device = torch.device("cuda", device)
    if not isinstance(device, (str, torch.device)) or not str(device).startswith("cuda"):
        return False
    if torch.device(device) != DEVICE:
        raise RuntimeError(f"{device} is not {DEVICE}, on which everything should be.")
    return True


def of_device(name: str, value):
    """A function of `torch.cuda` that has to be asked about the device, and says this of it."""

    def say(device=None, *_, **__):
        if device is None or not is_gpu(device):
            raise RuntimeError(
                f"torch.cuda.{name} is asked of the current device, not of {DEVICE}."
            )
        return value

    return say


class ToGpu(torch.autograd.Function):
    """Memory of the host becomes the device's, and its gradient comes back."""

    @staticmethod
    def forward(ctx, x, late: bool):
        LEDGER.note("to_device", "to", x.nbytes)
        if not late:
            return on_gpu(x.detach().clone())
        arrived = torch.empty_like(x)
        streams.current_stream().later(lambda: arrived.copy_(x))
        return on_gpu(arrived)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.cpu(), None


class ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, waits: bool):
        streams.current_stream().reads([x])
        LEDGER.note("to_host", "to", x.nbytes)
        if waits:
            LEDGER.note("waits", "to")
        return plain(x.detach()).clone()

    @staticmethod
    def backward(ctx, gradient):
        return on_gpu(gradient), None


def pin_memory(x: torch.Tensor) -> torch.Tensor:
    """Ordinary memory that says it is pinned, as this machine's may not be."""
    made = x.clone()
    PINNED.append((made.data_ptr(), made.data_ptr() + made.nbytes, made))
    return made


def is_pinned(x: torch.Tensor) -> bool:
    return any(begin <= x.data_ptr() < end for begin, end, _ in PINNED)


def asked_of_to(args: tuple, keywords: dict) -> tuple[dict, dict]:
    """The arguments of `Tensor.to` by name: those that say where to, and the others."""
    first, *rest = args or (None,)
    if isinstance(first, torch.Tensor):
        first, rest = first.device, [first.dtype, *rest]
    elif isinstance(first, torch.dtype):
        first, rest = None, [first, *rest]
    named = dict(zip(("device", "dtype", "non_blocking", "copy"), (first, *rest), strict=False))
    named = {name: value for name, value in (named | keywords).items() if value is not None}
    return {n: named.pop(n, None) for n in ("device", "non_blocking")}, named


def make_to(former):
    def to(self, *args, **keywords):
        where, named = asked_of_to(args, keywords)
        device, late = where["device"], bool(where["non_blocking"])
        here = isinstance(self, FakeGpuTensor)
        wanted = here if device is None else is_gpu(device)
        if self.is_meta or str(device) == "meta":
            return former(self, *args, **keywords)
        x = self
        if here and not wanted:
            x = ToHost.apply(x, not late)
        x = former(x, **named) if named else x
        return ToGpu.apply(x, late and x.is_pinned()) if wanted and not here else x

    return to


def led(former):
    """A factory whose result is the device's if it is asked for so, or pinned."""

    def make(*args, device=None, pin_memory=False, **keywords):
        if device is not None and is_gpu(device):
            LEDGER.note("kernels", former.__name__)
            learned = keywords.pop("requires_grad", False)
            made = on_gpu(former(*map(plain, args), device="cpu", **keywords))
            return made.requires_grad_() if learned else made
        keywords |= {} if device is None else {"device": device}
        made = former(*args, **keywords)
        return made.pin_memory() if pin_memory else made

    return make


def led_method(former):
    def make(self, *args, device=None, **keywords):
        if device is None or is_gpu(device) == isinstance(self, FakeGpuTensor):
            return former(self, *args, **keywords)
        return former(self, *args, **keywords).to(device)

    return make


def install(patch) -> None:
    """patch: pytest's `monkeypatch`."""
    LEDGER.clear()
    PINNED.clear()
    streams.DEFAULT.__init__()
    for name in FACTORIES:
        patch.setattr(torch, name, led(getattr(torch, name)))
    for name in METHODS:
        patch.setattr(torch.Tensor, name, led_method(getattr(torch.Tensor, name)))
    # A moved module gets new parameters, since a parameter is of the class of its tensor.
    patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    former = torch.Tensor.to
    patch.setattr(torch.Tensor, "to", make_to(former))
    patch.setattr(torch.Tensor, "pin_memory", pin_memory)
    patch.setattr(torch.Tensor, "is_pinned", is_pinned)
    patch.setattr(torch.Tensor, "cuda", lambda self, device=DEVICE, **k: self.to(device, **k))
    patch.setattr(torch.Tensor, "cpu", lambda self, *a, **k: self.to("cpu"))
    properties = SimpleNamespace(
        total_memory=BYTES, shared_memory_per_block_optin=232448, major=9, minor=0
    )
    anywhere = {
        "is_available": True,
        "device_count": 2,
        "current_device": 0,
        "is_bf16_supported": True,
        "get_device_capability": (9, 0),
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "empty_cache": None,
    }
    for name, value in anywhere.items():
        patch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    there = {
        "mem_get_info": (BYTES, BYTES),
        "max_memory_allocated": 1,
        "reset_peak_memory_stats": None,
        "get_device_name": "a fake GPU",
        "get_device_properties": properties,
    }
    for name, value in there.items():
        patch.setattr(torch.cuda, name, of_device(name, value))

    def synchronize(device=None) -> None:
        of_device("synchronize", None)(device)
        LEDGER.note("waits", "synchronize")
        streams.DEFAULT.finish()

    patch.setattr(torch.cuda, "synchronize", synchronize)
    patch.setattr(torch.cuda, "device", lambda *_: nullcontext())
    patch.setattr(torch.cuda, "Stream", streams.Stream)
    patch.setattr(torch.cuda, "Event", streams.Event)
    patch.setattr(torch.cuda, "current_stream", streams.current_stream)
    patch.setattr(torch.cuda, "stream", streams.using)
