"""The extension and Triton are optional: what runs, and what is said, without them."""

import importlib
import os
import subprocess
import sys

import pytest
import torch
from counting import NEEDS_EXTENSION


def run(code: str, *blocked: str, **environment: str) -> subprocess.CompletedProcess:
    """The code in a fresh Python in which some modules cannot be imported."""
    blocks = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
    command = [sys.executable, "-c", blocks + code]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | environment
    )


USE = """
import torch
from compressor.kernels.colsum import OP, colsum
from compressor.kernels.compact import compact
weight = torch.arange(12.0).view(3, 4)
for _ in range(2):
    assert colsum(weight).tolist() == [12, 15, 18, 21]
    assert compact(weight, torch.tensor([0, 2])).tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
print("available", *OP.available("cpu"))
colsum(weight, backend={forced!r})
"""


def test_without_the_extension_the_reference_runs_and_one_line_says_so():
    done = run(USE.format(forced="ext"), "compressor._C")
    assert "available ref" in done.stdout
    assert "ext" not in done.stdout
    lines = [line for line in done.stderr.splitlines() if "PyTorch references run on cpu" in line]
    assert len(lines) == 1, done.stderr
    assert "the extension is not built" in lines[0]
    assert "compressor._C" in lines[0]  # what the import said
    assert "ValueError: colsum: backend 'ext' cannot run on cpu: the extension" in done.stderr
    assert "Available: ref" in done.stderr


def test_without_triton_the_rest_runs():
    done = run(USE.format(forced="triton"), "triton")
    assert "available ref" in done.stdout
    assert "triton" not in done.stdout
    assert "colsum: backend 'triton' cannot run on cpu: Triton cannot be imported" in done.stderr


@NEEDS_EXTENSION
def test_the_extension_needs_neither_torch_nor_a_gpu():
    code = "import compressor._C as c; print(c.with_cuda, repr(c.archs), *dir(c))"
    done = run(code, "torch", "numpy")
    assert done.returncode == 0, done.stderr
    with_cuda, archs, *names = done.stdout.split(" ")
    assert any(name.endswith("_cpu") for name in names)
    assert any(name.endswith("_cuda") for name in names) == (with_cuda == "True")
    assert (archs != "''") == (with_cuda == "True")


@NEEDS_EXTENSION
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_launch_without_a_gpu_says_why():
    """CUDA's own message arrives, under the name of the launcher."""
    extension = importlib.import_module("compressor._C")
    if not extension.with_cuda:
        pytest.skip("needs nvcc when the extension is built, and COMPRESSOR_NO_CUDA not set")
    table = torch.zeros(1, 11, dtype=torch.int64)
    table[0, 6:9] = 1
    with pytest.raises(RuntimeError, match=r"compact_cuda: .+"):
        extension.compact_cuda(table.data_ptr(), 1, 0)


@NEEDS_EXTENSION
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux, for /proc")
@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""),
    reason="not under make asan, which needs address space of its own",
)
def test_too_few_threads_are_no_error():
    """Where the system starts no more threads, the parts that they would take run all the same."""
    code = """if True:
        import resource
        import torch
        from compressor.kernels.colsum import colsum
        torch.set_num_threads(1)
        weight = torch.randn(1024, 1024)
        alone = colsum(weight, backend="ext")
        torch.set_num_threads(8)
        pages = int(open("/proc/self/statm").read().split()[0])
        # Room for the stacks of two threads of seven.
        limit = pages * resource.getpagesize() + (20 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        print(torch.equal(colsum(weight, backend="ext"), alone))
    """
    done = run(code, COMPRESSOR_OPENMP="0")  # torch's own threads would end the process
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


@NEEDS_EXTENSION
@pytest.mark.parametrize("openmp", ["0", "1"])
def test_calls_from_several_threads_and_from_a_forked_process(openmp):
    """The threads that help are shared by all callers, and do not survive a fork."""
    code = """if True:
        import os
        from concurrent.futures import ThreadPoolExecutor
        import torch
        from compressor.kernels.colsum import colsum
        weights = [torch.randn(512, 700 + n) for n in range(24)]
        torch.set_num_threads(1)
        alone = [colsum(weight, backend="ext") for weight in weights]
        torch.set_num_threads(4)
        def right(n):
            return torch.equal(colsum(weights[n], backend="ext"), alone[n])
        with ThreadPoolExecutor(6) as pool:
            together = all(pool.map(right, list(range(24)) * 20))
        child = os.fork()
        if child == 0:
            os._exit(0 if all(map(right, range(24))) else 1)
        print(together, os.waitpid(child, 0)[1])
    """
    done = run(code, COMPRESSOR_OPENMP=openmp)
    assert (done.returncode, done.stdout) == (0, "True 0\n"), done.stderr
