"""The `.cu` files as a library for a CPU: rewritten as C++ and compiled against tests/ops/emulator.

What only nvcc understands is rewritten as text, line by line, so that messages name the lines of the
source: launches, and arrays in shared memory. A library is kept in build/emulated, named by what it was
made of.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from counting import compiler

ROOT = Path(__file__).parent.parent
HEADERS = ROOT / "tests/ops/emulator"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-U_FORTIFY_SOURCE"]
# A misaligned access faults on a GPU, and nothing that overflows means what it says.
FLAGS += ["-fsanitize=alignment,bounds,shift,integer-divide-by-zero,signed-integer-overflow"]
FLAGS += ["-fsanitize-undefined-trap-on-error"]
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")  # under `make asan`
if SANITIZED:  # then a read beyond any tensor is seen; of the coroutines' stacks it knows nothing
    FLAGS += ["-fsanitize=address", "--param=asan-stack=0"]

TEMPLATE = r"(?:<(?:[^<>;]|<[^<>;]*>)*>)?"
REWRITTEN = [
    (re.compile(rf"(\b\w+{TEMPLATE})<<<(.+?)>>>", re.DOTALL), r"emulated::launch(\1, \2)"),
    (
        re.compile(r"extern __shared__ ([\w:]+) (\w+)\[\];"),
        r"auto* const \2 = static_cast<\1*>(emulated::dynamic_shared());",
    ),
    (
        re.compile(rf"__shared__ ([\w:]+{TEMPLATE}) (\w+)((?:\[[^\]]+\])*);"),
        r"auto& \2 = emulated::shared<\1\3, __LINE__>();",
    ),
]
DECLARED = re.compile(r"^int (\w+_cuda)\((.*?)\);", re.DOTALL | re.MULTILINE)
EXPORTS = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "cpu/dtype.h"
#define EXPORT extern "C" __attribute__((visibility("default")))
using namespace compressor;
float __half2float(__half x) { return widen(float16{x.bits}); }
__half __float2half_rn(float x) { return {narrow<float16>(x).bits}; }
__nv_bfloat16 __float2bfloat16_rn(float x) { return {narrow<bfloat16>(x).bits}; }
EXPORT void configure(bool descending, int shared_limit) {
  emulated::descending = descending;
  emulated::shared_limit = shared_limit;
  emulated::failure.clear();
}
EXPORT const char* failure() { return emulated::failure.c_str(); }
"""


def rewritten(source: str, name: str) -> str:
    """A CUDA source as C++ for the emulator; ValueError where a word is left that it does not know."""
    for pattern, replacement in REWRITTEN:
        source = pattern.sub(replacement, source)
    for number, line in enumerate(source.splitlines(), 1):
        if "<<<" in line or "__shared__" in line:
            raise ValueError(f"{name}, line {number}: the emulator cannot read {line.strip()!r}.")
    return f'#line 1 "{name}"\n{source}'


def declared() -> dict[str, list[str]]:
    """The parameters of every CUDA launcher in csrc/ops.h."""
    found = DECLARED.findall((ROOT / "csrc/ops.h").read_text())
    return {name: [p.strip() for p in parameters.split(",")] for name, parameters in found}


def exports() -> str:
    """C functions of the same names."""
    text = EXPORTS
    for name, parameters in declared().items():
        names = ", ".join(re.split(r"[ *]", p)[-1] for p in parameters)
        text += f"EXPORT int run_{name}({', '.join(parameters)}) {{ return {name}({names}); }}\n"
    return text


def sources(edit: Callable[[str, str], str] = lambda path, text: text) -> dict[str, str]:
    """Everything to compile, by path: csrc without the CPU's kernels, after `edit(path, text)`."""
    found = {"exports.cpp": exports()}
    for path in sorted([*ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/c*/*.[hc]*")]):
        if path.suffix != ".cpp":
            name = path.relative_to(ROOT).as_posix()
            found[name] = rewritten(edit(name, path.read_text()), name)
    return found


def build(texts: dict[str, str]) -> Path:
    """The shared library of these sources, compiled where it is not there yet."""
    headers = "".join(path.read_text() for path in sorted(HEADERS.glob("*.h")))
    version = subprocess.run([*compiler(), "--version"], capture_output=True, text=True).stdout
    parts = (version, *FLAGS, headers, *(f"{name}\n{text}" for name, text in texts.items()))
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    folder = ROOT / "build/emulated"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{key}.so"
    with (folder / f"{key}.lock").open("w") as lock:  # of several processes of tests, one compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            compile_library(texts, library)
    return library


def compile_library(texts: dict[str, str], library: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, name).write_text(text)
        units = [f"{folder}/{name}" for name in texts if name.endswith((".cu", ".cpp"))]
        include = [f"-I{HEADERS}", f"-I{folder}/csrc", "-include", "cuda_runtime.h"]
        made = f"{folder}/made.so"
        command = [*compiler(), *FLAGS, *include, "-x", "c++", *units, "-o", made]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"The emulated kernels do not compile:\n{done.stderr}")
        os.replace(shutil.copy(made, f"{library}.part"), library)
