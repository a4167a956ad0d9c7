"""Maps the folders to import names and builds the extension; the rest is in pyproject.toml.

`compressor/` is the package and `kernels/` is `compressor.kernels`. A top-level `kernels` must never
be installed: transformers imports a package of that name.

The extension `compressor._C` is C++ always, and CUDA where nvcc is found. It needs no torch. Without it
the PyTorch references run: where no C++ compiler works, which is said once, or where that is asked for.
    COMPRESSOR_NO_EXTENSION=1  without it
    COMPRESSOR_CUDA_ARCHS      architectures to compile for, default 80;90 (and PTX of the newest)
    COMPRESSOR_NO_CUDA=1       C++ only
    COMPRESSOR_SANITIZE=1      with AddressSanitizer and UBSan, for `make asan`
    CXX, CUDA_HOME             another compiler, another toolkit
    MAX_JOBS                   compilations at a time
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
# Nobody looks at the processor's exception flags; loops with a selection are vectorised only then.
CXX_FLAGS = ["-std=c++17", "-O3", "-fno-trapping-math", "-fPIC", "-fvisibility=hidden"]
CXX_FLAGS += ["-Wall", "-Wextra"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1"]
if os.environ.get("COMPRESSOR_SANITIZE") != "1":
    SANITIZERS = []
RULES = """
rule compile
  command = $compiler $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
rule link
  command = $compiler -shared $in $flags -o $out
"""


# setuptools' commands that build; others ask for metadata, which an extension does not change.
BUILDING = {"bdist_wheel", "build", "build_ext", "develop", "editable_wheel", "install"}
EDITABLE = {"develop", "editable_wheel"}
TRIAL = "#include <Python.h>\n#include <thread>\nvoid trial() { std::thread([] {}).join(); }\n"


def extensions() -> list[Extension]:
    """The extension, or nothing where it is not wanted or no compiler works: then a wheel is pure."""
    extension = Extension("compressor._C", [])
    if not BUILDING & {*sys.argv}:
        return [extension]
    if os.environ.get("COMPRESSOR_NO_EXTENSION") != "1":
        if (reason := why_nothing_compiles(compiler())) is None:
            return [extension]
        print(
            f"WARNING: compressor is installed without its C++ extension: {reason}. Its operators run "
            "as PyTorch references, which are slower. To have it, install g++ and Python's headers "
            "(build-essential, python3-dev) or name another compiler by CXX, and install again; "
            "COMPRESSOR_NO_EXTENSION=1 leaves it out without this warning.",
            file=sys.stderr,
        )
    if EDITABLE & {*sys.argv}:  # what an earlier installation compiled here would still be found
        built = ROOT / f"compressor/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        built.unlink(missing_ok=True)
    return []


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or ["c++"]


def why_nothing_compiles(cxx: list[str]) -> str | None:
    """Why this compiler makes no shared library of a few lines; None if it does."""
    if shutil.which(cxx[0]) is None:
        return f"the C++ compiler {cxx[0]!r} is not there"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "trial.cpp")
        source.write_text(TRIAL)
        include = [f"-I{sysconfig.get_path(name)}" for name in ("include", "platinclude")]
        command = [*cxx, "-shared", *CXX_FLAGS, *include, "-o", f"{folder}/trial.so", str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        except OSError as error:
            return f"the C++ compiler {cxx[0]!r} cannot be started ({error.strerror})"
    if done.returncode == 0:
        return None
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["without a word"]
    first = next((line for line in said if "error" in line.lower()), said[0])
    return f"the C++ compiler {shlex.join(cxx)!r} fails on a few lines ({first})"


def cuda_home() -> Path | None:
    """CUDA_HOME, or the toolkit that nvcc on the PATH belongs to (it may be a wrapper)."""
    if os.environ.get("COMPRESSOR_NO_CUDA") == "1":
        return None
    nvcc = Path(shutil.which("nvcc") or "").resolve().parent.parent
    candidates = map(Path, filter(None, [os.environ.get("CUDA_HOME"), nvcc, "/usr/local/cuda"]))
    parts = ("bin/nvcc", "include/cuda_runtime.h")
    return next((home for home in candidates if all((home / p).exists() for p in parts)), None)


def program(name: str, advice: str) -> str:
    """The program's path, also of one installed beside a Python that is not activated."""
    places = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    if found := shutil.which(name, path=places):
        return found
    raise CompileError(f"The extension needs {name!r}, which is not on the PATH; {advice}.")


class Ninja(build_ext):
    """Writes one build.ninja for the extension's sources, runs it and copies the result."""

    def build_extension(self, extension: Extension) -> None:
        import pybind11

        cxx = compiler()
        flags, link, edges = CXX_FLAGS + SANITIZERS, ["-pthread", "-ldl", *SANITIZERS], []
        # An isolated build has these elsewhere every time; only the binding is compiled anew.
        python = [f"-isystem{p}" for p in (pybind11.get_include(), *self.compiler.include_dirs)]
        binding = flags + python
        if home := cuda_home():
            named = os.environ.get("COMPRESSOR_CUDA_ARCHS", "").split(";")
            archs = list(filter(None, named)) or ["80", "90"]  # set to nothing is not set
            newest = max(archs, key=lambda arch: int(re.sub(r"\D", "", arch) or 0))
            codes = [(arch, f"sm_{arch}") for arch in archs] + [(newest, f"compute_{newest}")]
            nvcc = [*NVCC_FLAGS, *(f"-gencode=arch=compute_{a},code={code}" for a, code in codes)]
            sources = sorted(ROOT.glob("csrc/cuda/*.cu"))
            edges = [(source, [str(home / "bin/nvcc")], nvcc) for source in sources]
            binding += ["-DCOMPRESSOR_WITH_CUDA", f'-DCOMPRESSOR_ARCHS="{" ".join(archs)}"']
            binding.append(f"-isystem{home / 'include'}")
            link += [f"-L{home / 'lib64'}", "-lcudart_static", "-lrt"]
        edges.append((ROOT / "csrc/bindings.cpp", cxx, binding))
        edges += [(source, cxx, flags) for source in sorted(ROOT.glob("csrc/cpu/*.cpp"))]
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # not into a file that a running process has mapped
        shutil.copy(self._ninja(edges, cxx, link), target)

    def _ninja(self, edges: list, linker: list, link: list) -> Path:
        # `build_temp` would not do: an editable install throws it away, and compiles all anew.
        build = ROOT / f"build/{'asan' if SANITIZERS else 'ninja'}-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        lines, objects = [RULES], []
        for source, compiler, flags in edges:
            objects.append(f"{source.parent.name}-{source.name}.o")
            path = str(source).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
            lines += [f"build {objects[-1]}: compile {path}", *_command(compiler, flags)]
        lines.append(f"build _C.so: link {' '.join(objects)}")
        (build / "build.ninja").write_text("\n".join([*lines, *_command(linker, link), ""]))
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        command = [program("ninja", "pip install ninja"), "-C", str(build), "-j", jobs]
        if subprocess.run(command, stdout=sys.stderr).returncode != 0:
            raise CompileError("The extension could not be compiled; the first error is above.")
        return build / "_C.so"


def _command(compiler: list[str], flags: list[str]) -> list[str]:
    words = {"compiler": compiler, "flags": flags}
    return [f"  {name} = {shlex.join(value)}".replace("$", "$$") for name, value in words.items()]


setup(
    package_dir={"compressor": "compressor", "compressor.kernels": "kernels"},
    packages=[
        "compressor",
        *(f"compressor.{name}" for name in find_packages("compressor")),
        "compressor.kernels",
        "compressor.kernels.bench",
    ],
    package_data={
        "compressor": ["py.typed", "held_out_modules.txt", "report/page.css", "schemas/*.json"]
    },
    ext_modules=extensions(),
    cmdclass={"build_ext": Ninja},
)
