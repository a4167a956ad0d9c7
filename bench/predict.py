"""What the kernels should reach on a GPU, from what a compiler says of them without one.

    python bench/predict.py [--bandwidth 4.3e12]         writes bench/PREDICTIONS.md

Every op but `rank` is bound by memory: its time is its bytes over the bandwidth of a copy. Registers
and shared memory bound how many warps of it a multiprocessor holds, hence how many loads are under
way. Whoever has a GPU runs `make gpu` and compares.
"""

import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from compressor import _C
from compressor.kernels import aot
from compressor.kernels.triton_support import triton

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from cases import CASES

PAGE = Path(__file__).with_name("PREDICTIONS.md")
ARCH = 90
REGISTERS, SHARED, WARPS, BLOCKS = 65_536, 227 * 1024, 64, 32  # a multiprocessor of sm_90 has
RESERVED = 1024  # bytes of shared memory a block takes beside its own
FUNCTION = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
THREADS = re.compile(r"\.nv\.info\.(\S+)\n(?:(?!\.nv\.info\.).)*?MAX_THREADS.*?0x([0-9a-f]+)", re.S)

HEAD = """# What the kernels should reach

Written by `python bench/predict.py` on {date}, without a GPU: bytes of a perfect implementation over a
copy bandwidth of {bandwidth:.1f} TB/s (measured on one H200 by a device-to-device copy; its datasheet
says 4.8), and what the compilers report for sm_{arch}. `make gpu` measures. The goal is 90 % of the
copy bandwidth of the same run for every op but `rank`, which sorts: five times `torch.sort`.
"""


def resident_warps(registers: int, shared: int, threads: int) -> int:
    """Warps of a kernel that one multiprocessor holds; registers are given out 256 a warp."""
    warps = -(-threads // 32)
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256) // warps
    by_shared = SHARED // (shared + RESERVED)
    return min(by_registers, by_shared, BLOCKS, WARPS // warps) * warps


def time_table(bandwidth: float) -> list[str]:
    lines = ["| op | shape | bytes | us | us at the goal |", "| --- | --- | --- | --- | --- |"]
    for op, family in CASES.items():
        for shape in family.shapes["cuda"]:
            size = family.build(shape, "meta").bytes
            micro = 1e6 * size / bandwidth
            name = " x ".join(map(str, shape))
            goal = "" if op == "rank" else f"{micro / 0.9:.1f}"
            lines.append(f"| {op} | {name} | {size:,} | {micro:.1f} | {goal} |")
    return lines


def triton_table() -> list[str]:
    lines = [
        "| kernel | registers | shared bytes | threads | warps a multiprocessor | spills |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for variant in (v for m in aot.kernel_modules() for v in aot.variants(m)):
        found = aot.compile_variant(variant, ARCH)
        threads = 32 * variant.num_warps
        warps = resident_warps(found.registers, found.shared, threads)
        numbers = f"{found.registers} | {found.shared:,} | {threads} | {warps} | {found.spilled}"
        lines.append(f"| {variant} | {numbers} |")
    return lines


def cuda_table() -> list[str]:
    """Of the extension's own machine code; dynamic shared memory is chosen at a launch."""
    lines = [
        "| kernel | registers | static shared bytes | most threads | spilled bytes |",
        "| --- | --- | --- | --- | --- |",
    ]
    tool = [triton.knobs.nvidia.cuobjdump.path, "-arch", f"sm_{ARCH}"]

    def dump(option: str) -> str:
        return subprocess.run([*tool, option, _C.__file__], capture_output=True, text=True).stdout

    threads = {name: int(number, 16) for name, number in THREADS.findall(dump("-elf"))}
    usage = FUNCTION.findall(dump("--dump-resource-usage"))
    names = subprocess.run(
        ["c++filt"], input="\n".join(u[0] for u in usage), capture_output=True, text=True
    ).stdout.splitlines()
    for name, (symbol, registers, stack, shared) in sorted(zip(names, usage, strict=True)):
        short = re.sub(r"\(anonymous namespace\)::|compressor::|^void |\(.*\)$", "", name)
        limit = threads.get(symbol, "")
        lines.append(f"| `{short}` | {registers} | {shared} | {limit} | {stack} |")
    return lines


def main(
    bandwidth: Annotated[float, typer.Option(help="Of a copy, bytes read and written.")] = 4.3e12,
    page: Annotated[Path, typer.Option(help="File to write.")] = PAGE,
) -> None:
    """Write the page."""
    if not _C.with_cuda:
        raise SystemExit("The extension was built without CUDA: install where nvcc is found.")
    parts = [
        HEAD.format(date=date.today(), bandwidth=bandwidth / 1e12, arch=ARCH).rstrip(),
        "## Time",
        "\n".join(time_table(bandwidth)),
        "## Triton kernels",
        "\n".join(triton_table()),
        "## CUDA kernels",
        "\n".join(cuda_table()),
    ]
    page.write_text("\n\n".join(parts) + "\n")
    print(page)


if __name__ == "__main__":
    typer.run(main)
