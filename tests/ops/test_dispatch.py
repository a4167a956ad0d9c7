"""Which implementation runs: defaults, forced backends, and what is said where one cannot."""

import os
import subprocess
import sys

import pytest
import torch
from counting import NEEDS_EXTENSION
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.kernels import colsum as colsum_module
from compressor.kernels import compact as compact_module
from compressor.kernels import dispatch, triton_support
from compressor.kernels.colsum import colsum
from compressor.kernels.compact import compact_many
from compressor.kernels.observers import find_observers

OPS = {"colsum": colsum_module.OP, "compact": compact_module.OP}
WEIGHT = torch.arange(12.0).view(3, 4)


class Recorder(TorchDispatchMode):
    """Keeps the names of the operators that torch's dispatcher sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def called(monkeypatch) -> list[str]:
    """The names of the implementations that run, in order."""
    names = []
    for op in OPS.values():
        for name, function in op.implementations.items():
            if function is not None:

                def recorded(*arguments, name=name, function=function):
                    names.append(name)
                    return function(*arguments)

                monkeypatch.setitem(op.implementations, name, recorded)
    return names


def default(op) -> str:
    """The declared default of the CPU, where it can run."""
    wanted = dispatch.EVERYWHERE or op.defaults["cpu"]
    return wanted if wanted in op.available("cpu") else "ref"


def test_defaults_run_what_was_declared(called):
    colsum(WEIGHT)
    compact_many([WEIGHT], [torch.tensor([0, 2])])
    assert called == [default(op) for op in OPS.values()]


def test_float64_runs_the_reference(called):
    assert colsum(WEIGHT.double()).dtype == torch.float64
    colsum(WEIGHT, torch.ones(3, dtype=torch.float64))
    compact_many([WEIGHT, WEIGHT.double()])
    assert called == ["ref"] * 3


def test_float64_refuses_other_backends():
    message = r"cannot run on cpu: float64 runs the reference only. Available: ref\."
    with pytest.raises(ValueError, match=f"colsum: backend 'ext' {message}"):
        colsum(WEIGHT.double(), backend="ext")
    with pytest.raises(ValueError, match=f"compact: backend 'ext' {message}"):
        compact_many([WEIGHT, WEIGHT.double()], backend="ext")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux, for Triton")
def test_triton_is_interpreted_in_the_tests():
    """Its own functions as well: what was defined before the variable was set would be compiled."""
    from triton.runtime.interpreter import InterpretedFunction

    assert isinstance(colsum_module._colsum_kernel, InterpretedFunction)
    assert isinstance(triton_support.tl.cdiv, InterpretedFunction)
    assert "triton" in OPS["colsum"].available("cpu")


@pytest.mark.parametrize("name", ["ref", "triton", "ext"])
def test_forced_backends_run_or_say_what_can(called, name):
    for op, run in zip(OPS.values(), (colsum, lambda w, **k: compact_many([w], **k)), strict=True):
        available = op.available("cpu")
        called.clear()
        if name in available:
            run(WEIGHT, backend=name)
            assert called == [name]
        else:
            message = f"{op.name}: backend '{name}' cannot run on cpu: .*{', '.join(available)}"
            with pytest.raises(ValueError, match=message):
                run(WEIGHT, backend=name)
            assert called == []


def test_unknown_backends_are_named():
    with pytest.raises(ValueError, match="colsum: backend is 'cuda'; one of ref, triton, ext"):
        colsum(WEIGHT, backend="cuda")


@pytest.mark.parametrize("forced", [None, "ref"])
def test_tensors_on_several_devices_are_named(forced):
    elsewhere = torch.ones(3, device="meta")
    with pytest.raises(ValueError, match="colsum: scale is on meta, but other tensors are on cpu"):
        colsum(WEIGHT, elsewhere, backend=forced)
    with pytest.raises(ValueError, match=r"compact: weight\[1\] is on meta, but other tensors"):
        compact_many([WEIGHT, WEIGHT.to("meta")], backend=forced)


def test_a_reason_is_logged_once_for_all_ops(monkeypatch, caplog):
    dispatch.explain.cache_clear()
    monkeypatch.setattr(dispatch, "EVERYWHERE", None)
    for op in OPS.values():
        missing = {op.defaults["cpu"]: "the machine is on fire"}
        monkeypatch.setattr(op, "missing", lambda backend, _, found=missing: found.get(backend))
    for _ in range(2):
        colsum(WEIGHT)
        compact_many([WEIGHT])
    assert caplog.messages == ["PyTorch references run on cpu: the machine is on fire."]
    dispatch.explain.cache_clear()


def under(value: str) -> subprocess.CompletedProcess:
    """A call in a fresh Python with COMPRESSOR_BACKEND; prints what runs."""
    code = """if True:
        import torch
        from compressor.kernels.colsum import OP, colsum
        for name, run in OP.implementations.items():
            OP.implementations[name] = lambda *a, name=name, run=run: (print(name), run(*a))[1]
        colsum(torch.ones(2, 2))
    """
    environment = {**os.environ, "COMPRESSOR_BACKEND": value}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_the_environment_chooses_for_all():
    done = under("ref")
    assert (done.returncode, done.stdout) == (0, "ref\n"), done.stderr


def test_an_unknown_name_in_the_environment_is_refused():
    done = under("fast")
    assert done.returncode != 0
    assert "COMPRESSOR_BACKEND is 'fast'; it is one of ref, triton, ext." in done.stderr


@pytest.mark.parametrize("name", ["ref", pytest.param("ext", marks=NEEDS_EXTENSION)])
def test_tensors_that_are_not_plain_memory_are_refused(name):
    quantized = torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8)
    with pytest.raises(TypeError, match="compact: weight is a quantized tensor"):
        compact_many([quantized], backend=name)
    lazy = torch._neg_view(WEIGHT)  # as the imaginary part of a conjugate is
    with pytest.raises(ValueError, match="compact: a tensor is negated or conjugated lazily"):
        compact_many([lazy], backend=name)
    assert torch.equal(compact_many([lazy])[0], -WEIGHT)


@pytest.mark.parametrize("name", ["triton", "ext"])
def test_other_devices_have_no_kernels(name):
    with pytest.raises(ValueError, match=f"colsum: backend '{name}' cannot run on meta: .*: ref"):
        colsum(WEIGHT.to("meta"), backend=name)


@pytest.mark.parametrize("grad", [True, False])
def test_torch_may_have_a_say_with_and_without_gradients(grad):
    with torch.set_grad_enabled(grad):
        lazy = torch._neg_view(WEIGHT)
        assert torch.equal(compact_many([lazy])[0], -WEIGHT)
        assert colsum(WEIGHT.to("meta")).device.type == "meta"
        with FakeTensorMode() as mode:
            assert colsum(mode.from_tensor(WEIGHT)).shape == (4,)
        with torch.profiler.profile() as profile:
            colsum(WEIGHT)
        assert "compressor::colsum" in {event.key for event in profile.key_averages()}
        with Recorder() as mode:
            colsum(WEIGHT)
        assert mode.seen == ["compressor.colsum.default"]


def test_without_gradients_the_dispatcher_is_left_out(called, monkeypatch):
    for op in OPS.values():
        monkeypatch.setattr(op, "overload", None)
    with torch.no_grad():
        colsum(WEIGHT)
        compact_many([WEIGHT], [torch.tensor([0, 2])])
        with pytest.raises(TypeError, match="colsum: weight must be a tensor, not str"):
            colsum("weight")
    assert called == [default(op) for op in OPS.values()]


@pytest.mark.parametrize("name", ["_len_torch_dispatch_stack", "_are_functorch_transforms_active"])
def test_without_a_private_name_of_torch_all_goes_through_the_dispatcher(monkeypatch, name):
    assert find_observers() is not None
    monkeypatch.delattr(torch._C, name)
    monkeypatch.setattr(dispatch, "OBSERVERS", find_observers())
    assert dispatch.OBSERVERS is None
    op, seen = OPS["colsum"], []
    overload = op.overload
    monkeypatch.setattr(op, "overload", lambda *given: seen.append(op.name) or overload(*given))
    with torch.no_grad():
        assert torch.equal(colsum(WEIGHT), WEIGHT.sum(0))
    assert seen == ["colsum"]


@NEEDS_EXTENSION
def test_tensors_between_their_elements_places():
    """As a file has them whose header has an odd length; native code would read them all the same, which
    no standard allows.
    """
    from compressor.kernels import native
    from compressor.kernels.taylor import OP as TAYLOR

    def astray(tensor: torch.Tensor) -> torch.Tensor:
        memory = bytearray(tensor.nbytes + 1)
        moved = torch.frombuffer(memory, dtype=tensor.dtype, offset=1, count=tensor.numel())
        return moved.view(tensor.shape).copy_(tensor)

    weight = astray(WEIGHT)
    assert native.astray(weight) and not native.astray(native.aligned(weight))
    assert torch.equal(colsum(weight, backend="ext"), colsum(WEIGHT, backend="ext"))
    assert torch.equal(compact_many([weight], [torch.tensor([0, 2])])[0], WEIGHT[[0, 2]])
    sums, nonfinite = astray(torch.zeros(3, 3)), torch.zeros((), dtype=torch.int64)
    with pytest.raises(ValueError, match="taylor: a tensor to write to does not begin at"):
        TAYLOR(WEIGHT, WEIGHT, sums, None, nonfinite, 1, 1, 1.0, backend="ext")
