"""The fake GPU refuses what a GPU would, sees who waits for whom, and computes what torch does."""

import pytest
import torch
from fake_gpu import installing
from fake_gpu.ledger import LEDGER
from fake_gpu.tensor import DEVICE, FakeGpuTensor

from compressor.kernels.moments import moments


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    installing.install(monkeypatch)


def test_tensors_say_where_they_are():
    for x in (
        torch.ones(3, 4).to(DEVICE),
        torch.empty(3, 4, device="cuda:1"),
        torch.ones(2).cuda(),
    ):
        assert x.device == DEVICE and x.is_cuda and not x.is_cpu
        assert (x + 1)[0].device == DEVICE
        assert x.cpu().device == torch.device("cpu") and not isinstance(x.cpu(), FakeGpuTensor)


def test_arithmetic_is_torchs():
    x, w = torch.randn(5, 6), torch.randn(6, 6)
    fake_x, fake_w = x.to(DEVICE), torch.nn.Parameter(w.to(DEVICE))
    (fake_x @ fake_w).square().sum().backward()
    w.requires_grad_()
    (x @ w).square().sum().backward()
    assert fake_w.grad.device == DEVICE
    assert torch.equal(fake_w.grad.cpu(), w.grad)


def test_operators_of_the_project_run_as_one_kernel():
    x = torch.randn(7, 5)
    LEDGER.clear()
    found = moments(x.to(DEVICE))
    assert found.device == DEVICE
    assert LEDGER.total("kernels") == 1
    assert torch.equal(found.cpu(), moments(x))


def test_devices_do_not_mix():
    x = torch.ones(3, device=DEVICE)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="not cuda:1"):
        torch.ones(3, device="cuda")
    with pytest.raises(TypeError, match="can't convert"):
        x.numpy()
    assert (x + torch.tensor(2.0)).tolist() == [3.0] * 3  # a number may come from the host


@pytest.mark.parametrize(
    "asked",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: torch.linalg.solve(x.diag_embed(), x),
        lambda x: torch.cuda.synchronize(DEVICE),
    ],
)
def test_who_asks_waits(asked):
    x = torch.ones(3, device=DEVICE)
    LEDGER.clear()
    asked(x)
    assert LEDGER.total("waits") >= 1


@pytest.mark.parametrize(
    "enqueued",
    [
        lambda x: x.sum(),
        lambda x: torch.where(x > 0, x, 0),
        lambda x: x[torch.tensor([0, 2])],
        lambda x: x.view(1, 3).expand(2, 3).T,
        lambda x: torch.linalg.solve_ex(x.diag_embed(), x),
    ],
)
def test_who_does_not_ask_does_not(enqueued):
    x = torch.ones(3, device=DEVICE)
    LEDGER.clear()
    enqueued(x)
    assert LEDGER.total("waits") == 0


def test_views_are_no_kernels_and_copies_are_counted():
    x = torch.ones(4, 6)
    LEDGER.clear()
    there = x.to(DEVICE)
    there.T[1:].view(-1, 2, 2)[0].detach()
    assert LEDGER.total("kernels") == 0 and LEDGER.total("to_device") == 1
    assert sum(LEDGER.bytes.values()) == x.nbytes


def test_asked_of_the_device_and_not_of_the_current_one():
    assert torch.cuda.mem_get_info(DEVICE)[0] == installing.BYTES
    with pytest.raises(RuntimeError, match="current device"):
        torch.cuda.max_memory_allocated()


def copied(wait: bool = True, record: bool = True, overwrite: bool = False) -> torch.Tensor:
    """What another stream finds that reads a copy out of pinned memory."""
    source = torch.arange(5.0).pin_memory()
    copying = torch.cuda.Stream(DEVICE)
    with torch.cuda.stream(copying):
        there = source.to(DEVICE, non_blocking=True)
        event = copying.record_event()
    if overwrite:
        source.zero_()
    computing = torch.cuda.current_stream(DEVICE)
    if wait:
        computing.wait_event(event)
    if record:
        there.record_stream(computing)
    return (there + 1).cpu()


def test_a_copy_that_is_waited_for():
    assert copied().tolist() == [1, 2, 3, 4, 5]


def test_a_copy_that_is_read_too_early():
    with pytest.raises(RuntimeError, match=r"before (its stream was|the stream)"):
        copied(wait=False)


def test_memory_that_may_be_given_away():
    with pytest.raises(RuntimeError, match="record_stream"):
        copied(record=False)


def test_pinned_memory_that_is_overwritten_too_early():
    assert copied(overwrite=True).tolist() != [1, 2, 3, 4, 5]
