"""What a GPU executes: the machine code of compiled kernels, disassembled and counted.

    python -m compressor.kernels.sass FILE.cubin ...     figures of every kernel in these files

Counted is the hot loop of a kernel. A loop is what lies between a branch back and its target; those
looked at are the innermost that read or write device memory, and the hot one reads the most bytes a
round; of equals the one that writes most. A kernel without a loop is counted whole.

Instructions a byte are all instructions of the loop, but NOPs, over the bytes that its accesses to
device memory name: both of one thread and one round, both as if no predicate were false. What a loop
calls or jumps out to is left out, as are loops beside it that stay in shared memory. A multiprocessor
starts four instructions of 32 threads a clock, so this is what bounds a kernel when memory does not.
"""

import argparse
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from compressor.kernels.triton_support import triton

SECTION = re.compile(r"^\.text\.(\S+):$")
LABEL = re.compile(r"^(\.L\w+):")
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*)")
TARGET = re.compile(r"`\((\.L\w+)\)")
LOADS, STORES, SPILLS = ("LDG", "LDGSTS"), ("STG",), ("LDL", "STL")
BULK = ("UBLKCP", "UBLKPF", "UTMALDG", "UTMASTG")  # their opcodes do not say how many bytes
NARROW = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


@dataclass(frozen=True)
class Figures:
    """Counts of one kernel; from `instructions` on, those of its hot loop."""

    kernel: str  # its symbol
    spills: int  # instructions that read or write local memory
    bulk: int  # copies whose bytes are not known here
    looped: bool
    instructions: int
    loads: dict[int, int]  # bytes of an access -> how many such accesses
    stores: dict[int, int]

    @property
    def bytes(self) -> int:
        return sum(n * width for w in (self.loads, self.stores) for width, n in w.items())

    @property
    def per_byte(self) -> float:
        """Infinite where nothing is moved."""
        return self.instructions / self.bytes if self.bytes else float("inf")


@dataclass(frozen=True)
class Instruction:
    opcode: str  # with its modifiers: LDG.E.128
    target: str | None  # the label that a branch goes to

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def width(self) -> int:
        """Bytes of an access; four where no modifier says otherwise."""
        return next((NARROW[m] for m in self.opcode.split(".") if m in NARROW), 4)


def figures_of(cubin: Path) -> list[Figures]:
    """Of every kernel in a file, in the file's order."""
    return [
        counted(name, code, labels) for name, (code, labels) in parsed(disassembly(cubin)).items()
    ]


def disassembly(cubin: Path) -> str:
    """By the nvdisasm that comes with Triton."""
    if triton is None:
        raise RuntimeError("The disassembler comes with Triton, which is not installed.")
    command = [triton.knobs.nvidia.nvdisasm.path, "-c", str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def parsed(text: str) -> dict[str, tuple[list[Instruction], dict[str, int]]]:
    """Kernel -> its instructions, and label -> index of the instruction after it."""
    kernels: dict[str, tuple[list[Instruction], dict[str, int]]] = {}
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if section := SECTION.match(line):
            code, labels = kernels.setdefault(section[1], ([], {}))
        elif label := LABEL.match(line):
            labels[label[1]] = len(code)
        elif found := INSTRUCTION.match(line):
            goes = TARGET.search(found[3]) if found[2].startswith("BRA") else None
            code.append(Instruction(found[2], goes and goes[1]))
    return kernels


def counted(name: str, code: list[Instruction], labels: dict[str, int]) -> Figures:
    loops = innermost(code, labels)
    hot = max(loops, key=lambda loop: (bytes_moved(loop, LOADS), bytes_moved(loop)), default=code)
    return Figures(
        kernel=name,
        spills=sum(i.name in SPILLS for i in code),
        bulk=sum(i.name in BULK for i in code),
        looped=bool(loops),
        instructions=sum(i.name != "NOP" for i in hot),
        loads=widths(hot, LOADS),
        stores=widths(hot, STORES),
    )


def innermost(code: list[Instruction], labels: dict[str, int]) -> list[list[Instruction]]:
    """The loops with an access to device memory that have no such loop inside them."""
    spans = {
        (labels[i.target], end)
        for end, i in enumerate(code)
        if i.target in labels and labels[i.target] <= end
    }
    moving = sorted(s for s in spans if bytes_moved(code[s[0] : s[1] + 1]))
    return [
        code[a : b + 1]
        for a, b in moving
        if not any((c, d) != (a, b) and a <= c and d <= b for c, d in moving)
    ]


def widths(code: list[Instruction], names: tuple[str, ...]) -> dict[int, int]:
    return dict(sorted(Counter(i.width for i in code if i.name in names).items()))


def bytes_moved(code: list[Instruction], names: tuple[str, ...] = LOADS + STORES) -> int:
    return sum(i.width for i in code if i.name in names)


def demangled(symbols: list[str]) -> list[str]:
    """C++ symbols of this project's kernels as short names: `mask_kernel<float, true>`."""
    done = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    )
    shorter = re.compile(r"\(anonymous namespace\)::|compressor::|^void |\(.*\)$")
    return [shorter.sub("", name) for name in done.stdout.splitlines()]


def line_of(figures: Figures) -> str:
    """Figures in one line, as both tables print them."""
    accesses = [
        f"{kind} " + ", ".join(f"{n} x {width}" for width, n in found.items())
        for kind, found in (("loads", figures.loads), ("stores", figures.stores))
        if found
    ]
    where = "loop" if figures.looped else "whole"
    return (
        f"{figures.per_byte:6.2f} a byte, {figures.instructions:5} instructions ({where}), "
        f"{figures.spills} spills, {'; '.join(accesses)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m compressor.kernels.sass",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cubin", nargs="+", type=Path)
    for cubin in parser.parse_args().cubin:
        found = figures_of(cubin)
        for figures, name in zip(found, demangled([f.kernel for f in found]), strict=True):
            print(f"{line_of(figures)}  {name}")


if __name__ == "__main__":
    main()
