"""Compiles every Triton kernel to machine code, ahead of time and without a GPU.

    python -m compressor.kernels.aot            a table of registers, spills, load widths, machine code
    python -m compressor.kernels.aot --json     the same for programs

What is compiled are the `VARIANTS` of each kernel file; see `triton_support.Variant`.
"""

import argparse
import ast
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import tempfile
from pathlib import Path

from compressor import kernels
from compressor.kernels import sass, triton_support
from compressor.kernels.triton_support import Variant, triton

ARCHS = (80, 90)
FILE = re.compile(r'\.file\s+(\d+) "(.*)"')
LINE = re.compile(r"\.loc\s+(\d+) (\d+) ")
LOAD = re.compile(r"ld\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\s")
ASYNCHRONOUS_LOAD = re.compile(r"cp\.async\S* \[.*?\], \[.*?\], (0x[0-9a-f]+)")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of one variant for one architecture."""

    variant: str
    arch: int
    registers: int  # a thread
    spilled: int  # bytes of stack a thread: registers that did not fit
    shared: int  # bytes a program
    loads: dict[str, int]  # pointer -> bytes of the narrowest load from it
    too_narrow: list[
        str
    ]  # pointers of Variant.wide with a load of less than 16 bytes, or with none
    cubin_bytes: int
    code: sass.Figures
    ptx: str = dataclasses.field(repr=False)


def kernel_modules() -> list:
    """Every module of `compressor.kernels`."""
    names = sorted(m.name for m in pkgutil.iter_modules(kernels.__path__, kernels.__name__ + "."))
    return [importlib.import_module(name) for name in names]


def variants(module) -> list[Variant]:
    return getattr(module, "VARIANTS", [])


def without_variant(modules: list) -> list[str]:
    """Kernels that no variant compiles, on their own or as a helper that another one calls."""
    functions = {
        f for m in modules for f in vars(m).values() if isinstance(f, triton.JITFunction)
    } - {v.kernel for m in modules for v in variants(m)}

    def is_helper(function):
        called = re.compile(rf"\b{function.__name__}\(")
        users = (v.kernel for m in modules for v in variants(m))
        return not function.__name__.endswith("_kernel") and any(
            called.search(f.src) for f in {*users, *functions} - {function}
        )

    return sorted(f"{f.__module__}.{f.__name__}" for f in functions if not is_helper(f))


def compile_variant(variant: Variant, arch: int) -> Compiled:
    """Compile for `sm_ARCH`; RuntimeError where kernels are interpreted and cannot be compiled."""
    if triton is None:
        raise RuntimeError(triton_support.MISSING)
    if triton_support.INTERPRETED:
        raise RuntimeError("Nothing compiles in Triton's interpreter: unset TRITON_INTERPRET.")
    kernel = variant.kernel
    types = {name: kind.partition(":")[0] for name, kind in variant.types.items()}
    types |= dict.fromkeys(variant.constants, "constexpr")
    aligned = [name for name, kind in variant.types.items() if kind.endswith(":16")]
    source = triton.compiler.ASTSource(
        kernel,
        signature={name: types[name] for name in kernel.arg_names},
        constexprs=variant.constants,
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    built = triton.compile(
        source,
        target=triton.backends.compiler.GPUTarget("cuda", arch, 32),
        options={"num_warps": variant.num_warps, "num_stages": variant.num_stages},
    )
    registers, spilled, code = looked_into(built.asm["cubin"])
    loads = load_widths(built.asm["ptx"], kernel)
    return Compiled(
        variant=str(variant),
        arch=arch,
        registers=registers,
        spilled=spilled,
        shared=built.metadata.shared,
        loads=loads,
        too_narrow=[name for name in variant.wide if loads.get(name, 0) < 16],
        cubin_bytes=len(built.asm["cubin"]),
        code=code,
        ptx=built.asm["ptx"],
    )


def looked_into(cubin: bytes) -> tuple[int, int, sass.Figures]:
    """Registers and bytes of stack a thread, and counts of the machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        (code,) = sass.figures_of(path)
    registers, stack = USAGE.search(report).groups()
    return int(registers), int(stack), code


def load_widths(ptx: str, kernel) -> dict[str, int]:
    """Pointer -> bytes of the narrowest load from it, found through the loads' source lines."""
    path = inspect.getsourcefile(kernel.fn)
    pointers = loaded_pointers(Path(path).read_text())
    own = {number for number, name in FILE.findall(ptx) if Path(name).name == Path(path).name}
    widths: dict[str, int] = {}
    line = None
    for text in ptx.splitlines():
        if where := LINE.search(text):
            line = int(where[2]) if where[1] in own else None
            continue
        if load := LOAD.search(text):
            width = int(load[1] or 1) * int(load[2]) // 8
        elif load := ASYNCHRONOUS_LOAD.search(text):
            width = int(load[1], 16)
        else:
            continue
        name = pointers.get(line, "?")
        widths[name] = min(width, widths.get(name, width))
    return widths


def loaded_pointers(source: str) -> dict[int, str]:
    """Line -> the pointer that stands first in the `tl.load` there."""
    pointers = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load":
            address = node.args[0]
            while isinstance(address, ast.BinOp):
                address = address.left
            for line in range(node.lineno, node.end_lineno + 1):
                pointers[line] = ast.unparse(address)
    return pointers


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m compressor.kernels.aot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--arch", type=int, action="append", help="80 for sm_80; may be repeated")
    parser.add_argument("--first", action="store_true", help="only each kernel's first variant")
    options = parser.parse_args()
    modules = kernel_modules()
    archs = options.arch or ARCHS
    chosen = [v for m in modules for v in variants(m)]
    if options.first:
        chosen = [*{v.kernel: v for v in reversed(chosen)}.values()][::-1]
    try:
        built = [compile_variant(v, arch) for v in chosen for arch in archs]
    except RuntimeError as error:
        raise SystemExit(str(error)) from None
    if options.json:
        missing = without_variant(modules)
        rows = [{k: v for k, v in dataclasses.asdict(c).items() if k != "ptx"} for c in built]
        print(json.dumps({"compiled": rows, "without_variant": missing}))
        return
    print(
        "arch  registers  spilled  shared   cubin  variant, bytes of each pointer's narrowest load"
    )
    for c in built:
        loads = " ".join(f"{name}:{width}" for name, width in c.loads.items())
        print(
            f"{c.arch:>4}  {c.registers:>9}  {c.spilled:>7}  {c.shared:>6}  {c.cubin_bytes:>6}  "
            f"{c.variant}, {loads}\n      {sass.line_of(c.code)}"
        )


if __name__ == "__main__":
    main()
