"""The roofline: a part takes as long as its FLOPs at the peak, or its bytes at the bandwidth.

    seconds = max(FLOPs / peak, bytes / bandwidth)        of each part; a step is the sum of its parts

(Williams, Waterman, Patterson: Roofline, CACM 2009.) It is a bound: nothing that moves these bytes
and computes these products in this dtype is faster. How near a run comes, only a run can say.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from compressor.errors import InputError
from compressor.model.work import Work


@dataclass(frozen=True)
class Device:
    """Ceilings: bytes a second, FLOPs a second for each dtype, and where they come from."""

    name: str
    bandwidth: float
    peak: dict[torch.dtype, float]
    source: str

    def seconds(self, work: Work, dtype: torch.dtype) -> float:
        return max(work.flops / self.peak[dtype], work.bytes / self.bandwidth)

    def bound(self, work: Work, dtype: torch.dtype) -> str:
        """Which of the two decides."""
        compute = work.flops / self.peak[dtype] > work.bytes / self.bandwidth
        return "compute" if compute else "memory"


def total_seconds(works: Iterable[Work], device: Device, dtype: torch.dtype) -> float:
    return sum(device.seconds(work, dtype) for work in works)


def tensor_cores(half: float, single: float) -> dict[torch.dtype, float]:
    return {torch.bfloat16: half, torch.float16: half, torch.float32: single}


# Dense rates (the sheets' figures with sparsity are twice these), accumulating in float32. float32
# is that of the ordinary cores: PyTorch uses TF32 only where it is asked to.
DEVICES = {
    # NVIDIA H200 data sheet, SXM: 1,979 TFLOPS bf16 with sparsity, 67 fp32, 4.8 TB/s.
    "h200": Device("h200", 4.8e12, tensor_cores(989.5e12, 67e12), "data sheet (SXM, 141 GB)"),
    # NVIDIA A100 data sheet, SXM 80 GB: 312 TFLOPS bf16, 19.5 fp32, 2,039 GB/s.
    "a100": Device("a100", 2.039e12, tensor_cores(312e12, 19.5e12), "data sheet (SXM, 80 GB)"),
    # NVIDIA Ada GPU architecture white paper, appendix A: 165.2 TFLOPS bf16, 82.6 fp32, 1,008 GB/s.
    "rtx4090": Device("rtx4090", 1.008e12, tensor_cores(165.2e12, 82.6e12), "white paper (24 GB)"),
}
HERE = ("cpu", "cuda")


def is_here(name: str) -> bool:
    """Whether the device is one of this machine, whose ceilings are measured."""
    if name in DEVICES:
        return False
    if name.partition(":")[0] in HERE:
        return True
    raise InputError(
        f"The device {name!r} is not known; known are {', '.join(DEVICES)}, and, measured on this "
        f"machine, {' and '.join(HERE)}."
    )
