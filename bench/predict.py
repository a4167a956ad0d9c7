"""What the kernels should reach on a GPU, from what a compiler says of them without one.

    python bench/predict.py [--bandwidth 4.3e12]         writes bench/PREDICTIONS.md

Every op but `rank` and `eliminate` should be bound by memory: its time is its bytes over the bandwidth
of a copy. It is bound by its instructions where starting those takes longer. Registers and shared memory
bound how many warps of it a multiprocessor holds, hence how many loads are under way. Whoever has a GPU
runs `make gpu` and compares.
"""

import re
import subprocess
import tempfile
from datetime import date
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from compressor import _C
from compressor.kernels import aot, sass
from compressor.kernels.bench.cases import CASES
from compressor.kernels.triton_support import triton

PAGE = Path(__file__).with_name("PREDICTIONS.md")
ARCH = 90
REGISTERS, SHARED, WARPS, BLOCKS = 65_536, 227 * 1024, 64, 32  # a multiprocessor of sm_90 has
RESERVED = 1024  # bytes of shared memory a block takes beside its own
PROCESSORS, STARTED, CLOCK = (
    132,
    4,
    1.755e9,
)  # an H200: instructions of a warp a clock; boost, in Hz
# Where copies at full speed would need more of these starts than this, waiting will show.
CROWDED = 0.8
# op -> its kernels in bfloat16, each with the part of the op's bytes that it moves.
KERNELS = {
    "colsum": {"_colsum_kernel bf16/* SCALED=True *": 1.0},
    "taylor": {"_taylor_kernel bf16/bf16/* COUNT=5 *": 1.0},
    "moments": {"_moments_kernel bf16/* MASKED=False *": 1.0},
    "swiglu_moments": {
        "_swiglu_moments_kernel bf16/* ACTIVATION=silu MASKED=False PRODUCT=True *": 1.0
    },
    "gated_swiglu": {
        "_gated_swiglu_kernel bf16/* ACTIVATION=silu *": 6 / 16,
        "_gated_swiglu_backward_kernel bf16/* ACTIVATION=silu *": 10 / 16,
    },
    "gate": {"_gated_backward_kernel bf16/*": 6 / 10},  # forward, torch multiplies
    "compact_rows": {"compact_kernel<Move<unsigned short> >": 1.0},
    "besa_mask": {
        "mask_kernel<unsigned short, true>": 6 / 12,
        "backward_kernel<__nv_bfloat16, true>": 6 / 12,
    },
}
FUNCTION = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
THREADS = re.compile(r"\.nv\.info\.(\S+)\n(?:(?!\.nv\.info\.).)*?MAX_THREADS.*?0x([0-9a-f]+)", re.S)

HEAD = """# What the kernels should reach

Written by `python bench/predict.py` on {date}, without a GPU: bytes of a perfect implementation over a
copy bandwidth of {bandwidth:.1f} TB/s (measured on one H200 by a device-to-device copy; its datasheet
says 4.8), and what the compilers report for sm_{arch}. `make gpu` measures. The goal is 90 % of the
copy bandwidth of the same run for every op but `rank`, which sorts: five times `torch.sort`; and
`eliminate`, whose launches follow each other: about 3 us each.
"""
ISSUE = """Instructions a byte are those of the kernels' hot loops, counted in their machine code as
`kernels/sass.py` says; what lies outside the loops comes on top, as do the sums in shared memory of
`besa_mask`'s gradient. An H200 starts {processors} x {started} instructions of 32 threads a clock; at
{clock:.3f} GHz that is {most:.1f} for each byte that the copy moves. The share of these starts that an
op takes when it runs at the copy's speed is in the last column: above 100 % it cannot, above
{crowded:.0%} it is expected to fall short of the goal, since no kernel starts one on every clock. The
instructions of `compact` with chosen columns are not counted: its loads share sectors.

{verdict}
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
            size = family.case(shape, "meta").bytes
            micro = 1e6 * size / bandwidth
            name = " x ".join(map(str, shape))
            goal = "" if op in ("rank", "eliminate") else f"{micro / 0.9:.1f}"
            lines.append(f"| {op} | {name} | {size:,} | {micro:.1f} | {goal} |")
    return lines


@cache
def compiled_variants() -> list[aot.Compiled]:
    return [aot.compile_variant(v, ARCH) for m in aot.kernel_modules() for v in aot.variants(m)]


@cache
def extension_code() -> dict[str, sass.Figures]:
    """Kernel -> figures, of the extension's own machine code."""
    with tempfile.TemporaryDirectory() as folder:
        command = [triton.knobs.nvidia.cuobjdump.path, "-arch", f"sm_{ARCH}", "-xelf", "all"]
        subprocess.run([*command, _C.__file__], cwd=folder, check=True, capture_output=True)
        found = [f for path in Path(folder).glob("*.cubin") for f in sass.figures_of(path)]
    return dict(zip(sass.demangled([f.kernel for f in found]), found, strict=True))


def per_byte(pattern: str) -> float:
    """Instructions a byte of the one kernel whose name fits."""
    code = {c.variant: c.code for c in compiled_variants()} | extension_code()
    (figures,) = [figures for name, figures in code.items() if fnmatchcase(name, pattern)]
    return figures.per_byte


def issue_section(bandwidth: float) -> str:
    """How long the instructions of each op take to start, beside its bytes."""
    starts = PROCESSORS * STARTED * CLOCK * 32  # of one thread, a second
    lines = [
        "| op | instructions a byte | us, largest shape: bytes | instructions | starts taken |",
        "| --- | --- | --- | --- | --- |",
    ]
    crowded = []
    for op, kernels in KERNELS.items():
        family = CASES[op]
        size = family.case(family.shapes["cuda"][-1], "meta").bytes * sum(kernels.values())
        cost = sum(per_byte(k) * part for k, part in kernels.items()) / sum(kernels.values())
        share = cost * bandwidth / starts
        times = f"{1e6 * size / bandwidth:.1f} | {1e6 * cost * size / starts:.1f}"
        lines.append(f"| {op} | {cost:.2f} | {times} | {share:.0%} |")
        if share > CROWDED:
            crowded.append(f"`{op}` ({share:.0%})")
    verdict = "No op is expected to fall short of 90 % of a copy for its instructions."
    if crowded:
        verdict = f"Expected to fall short of 90 % of a copy: {', '.join(crowded)}."
    head = ISSUE.format(
        processors=PROCESSORS,
        started=STARTED,
        clock=CLOCK / 1e9,
        most=starts / bandwidth,
        crowded=CROWDED,
        verdict=verdict,
    )
    return head + "\n" + "\n".join(lines)


def triton_table() -> list[str]:
    lines = [
        "| kernel | registers | shared bytes | threads | warps a multiprocessor | spills "
        "| instructions a byte |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    variants = [v for m in aot.kernel_modules() for v in aot.variants(m)]
    for variant, found in zip(variants, compiled_variants(), strict=True):
        threads = 32 * variant.num_warps
        warps = resident_warps(found.registers, found.shared, threads)
        numbers = f"{found.registers} | {found.shared:,} | {threads} | {warps} | {found.spilled}"
        lines.append(f"| {variant} | {numbers} | {found.code.per_byte:.2f} |")
    return lines


def cuda_table() -> list[str]:
    """Of the extension's own machine code; dynamic shared memory is chosen at a launch."""
    lines = [
        "| kernel | registers | static shared bytes | most threads | spilled bytes "
        "| instructions a byte |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    tool = [triton.knobs.nvidia.cuobjdump.path, "-arch", f"sm_{ARCH}"]

    def dump(option: str) -> str:
        return subprocess.run([*tool, option, _C.__file__], capture_output=True, text=True).stdout

    threads = {name: int(number, 16) for name, number in THREADS.findall(dump("-elf"))}
    usage = FUNCTION.findall(dump("--dump-resource-usage"))
    names = sass.demangled([u[0] for u in usage])
    for name, (symbol, registers, stack, shared) in sorted(zip(names, usage, strict=True)):
        numbers = f"{registers} | {shared} | {threads.get(symbol, '')} | {stack}"
        lines.append(f"| `{name}` | {numbers} | {extension_code()[name].per_byte:.2f} |")
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
        "## Instructions",
        issue_section(bandwidth),
        "## Triton kernels",
        "\n".join(triton_table()),
        "## CUDA kernels",
        "\n".join(cuda_table()),
    ]
    page.write_text("\n\n".join(parts) + "\n")
    print(page)


if __name__ == "__main__":
    typer.run(main)
