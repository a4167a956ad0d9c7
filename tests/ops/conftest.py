"""Shared by the ops' tests: the backends that run here, and memory that shows when it is not written."""

import emulated
import pytest
import torch

CUDA = torch.cuda.is_available()
DEVICES = ["cpu", *(["cuda"] if CUDA else [])]


def pytest_generate_tests(metafunc):
    """A test with `device` and `backend` runs on every pair that its module's `OP` can run on here."""
    if not {"device", "backend"} <= set(metafunc.fixturenames):
        return
    op = metafunc.module.OP
    pairs = [(d, b) for d in DEVICES for b in op.available(d)]
    pairs += [(d, "emulated") for d in DEVICES if emulated.has(op, d)]
    gpu = pytest.mark.gpu
    metafunc.parametrize(
        ("device", "backend"),
        [pytest.param(d, b, id=f"{d}-{b}", marks=[gpu] if d == "cuda" else []) for d, b in pairs],
    )


@pytest.fixture(autouse=True)
def emulated_kernels(request, monkeypatch):
    """CUDA's kernels on the CPU, for the cases of that backend."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if parameters.get("backend") == "emulated":
        emulated.install(monkeypatch, emulated.library())


@pytest.fixture
def one_order(monkeypatch):
    """Emulated threads run in one order only: what comes out means nothing, and may depend on it."""
    monkeypatch.setattr(emulated, "ORDERS", emulated.ORDERS[:1])


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch):
    """`torch.empty` gives NaN or the largest integer: an element that nobody writes fails its test."""
    empty = torch.empty
    # Torch keeps, from the first time on, which functions `torch.device` contexts are about. If it
    # were to keep this one, models built without memory in later tests would have all of theirs.
    with torch.device("meta"):
        empty(0)

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        if type(tensor) is not torch.Tensor or tensor.device.type == "meta":
            return tensor
        if tensor.dtype.is_floating_point:
            return tensor.fill_(float("nan"))
        return tensor.fill_(torch.iinfo(tensor.dtype).max) if tensor.dtype != torch.bool else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
