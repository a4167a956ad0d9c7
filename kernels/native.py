"""The C++/CUDA extension: one call from tensors to addresses, or the reason why it is missing.

The extension knows no torch. Python checks, allocates and chooses the stream; native code only
reads and writes the memory it is given.
"""

from array import array

import torch

try:
    from compressor import _C

    MISSING = None
except ImportError as error:
    _C = None
    MISSING = f"the extension is not built ({error})"

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in csrc/ops.h


def missing(function: str) -> str | None:
    """Why the extension cannot run `function` (NAME_cpu or NAME_cuda); None if it can."""
    if _C is not None and not hasattr(_C, function):
        cuda = function.endswith("_cuda") and not _C.with_cuda
        return (
            "the extension was built without CUDA" if cuda else f"the extension has no {function}"
        )
    return MISSING


def native(name: str, device: torch.device, *arguments) -> None:
    """Run NAME_cpu on all of torch's threads, or NAME_cuda on the device's current stream.

    Tensors and arrays are passed as addresses (0 for None), torch dtypes as codes, numbers as they are.
    RuntimeError with the name and CUDA's message when a launch fails.
    """
    function = getattr(_C, f"{name}_{device.type}")
    values = [_plain(a) for a in arguments]
    if device.type == "cpu":
        function(*values, torch.get_num_threads())
        return
    # A launch goes to the current device, which need not be the tensors' own.
    with torch.cuda.device(device):
        function(*values, torch.cuda.current_stream().cuda_stream)


def in_rows(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix itself if the elements of its rows are neighbours in memory, else a copy of it."""
    return matrix if matrix.stride(-1) == 1 else matrix.contiguous()


def aligned(argument):
    """The argument, where tensors that do not begin at a multiple of their elements' size are copied.

    Native code relies on it, and a file whose header has an odd length is mapped to other places.
    """
    if isinstance(argument, torch.Tensor):
        return argument.clone() if astray(argument) else argument
    return [aligned(each) for each in argument] if isinstance(argument, list | tuple) else argument


def astray(tensor: torch.Tensor) -> bool:
    return tensor.data_ptr() % tensor.element_size() != 0


def _plain(argument):
    if argument is None:
        return 0
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr()
    if isinstance(argument, array):
        return argument.buffer_info()[0]
    return DTYPES[argument] if isinstance(argument, torch.dtype) else argument
