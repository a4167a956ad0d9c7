"""Maps the folders to import names and builds the extension; the rest is in pyproject.toml.

`compressor/` is the package and `kernels/` is `compressor.kernels`. A top-level `kernels` must never
be installed: transformers imports a package of that name.

The extension `compressor._C` is C++ always, and CUDA where nvcc is found. It needs no torch.
    COMPRESSOR_CUDA_ARCHS   architectures to compile for, default 80;90 (and PTX of the newest)
    COMPRESSOR_NO_CUDA=1    C++ only
    COMPRESSOR_SANITIZE=1   with AddressSanitizer, for `make asan`
    MAX_JOBS                compilations at a time
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
# Nobody looks at the processor's exception flags; loops with a selection are vectorised only then.
CXX_FLAGS = ["-std=c++17", "-O3", "-fno-trapping-math", "-fPIC", "-fvisibility=hidden"]
CXX_FLAGS += ["-Wall", "-Wextra"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden"]
RULES = """
rule cxx
  command = $cxx -MMD -MF $out.d $flags -c $in -o $out
  depfile = $out.d
rule nvcc
  command = $nvcc -MD -MF $out.d $flags -c $in -o $out
  depfile = $out.d
rule link
  command = $cxx -shared $in $flags -o $out
"""


def cuda_home() -> Path | None:
    """The toolkit that nvcc on the PATH belongs to (it may be a wrapper), or CUDA_HOME."""
    if os.environ.get("COMPRESSOR_NO_CUDA") == "1":
        return None
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    if nvcc:
        candidates.insert(1, Path(nvcc).resolve().parent.parent)
    homes = [Path(c) for c in candidates if c and (Path(c) / "include/cuda_runtime.h").exists()]
    return next((h for h in homes if (h / "bin/nvcc").exists()), None)


class Ninja(build_ext):
    """Writes one build.ninja for the extension's sources and runs it."""

    def build_extension(self, extension: Extension) -> None:
        import pybind11

        build = Path(self.build_temp).resolve() / "ninja"
        build.mkdir(parents=True, exist_ok=True)
        includes = [pybind11.get_include(), *self.compiler.include_dirs]
        cxx = [*CXX_FLAGS, *(f"-isystem{path}" for path in includes)]
        link: list[str] = ["-pthread"]
        if os.environ.get("COMPRESSOR_SANITIZE") == "1":
            cxx += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g", "-O1"]
            cxx += ["-fno-sanitize-recover=undefined"]
            link += ["-fsanitize=address,undefined"]
        sources = [ROOT / "csrc/bindings.cpp", *sorted((ROOT / "csrc/cpu").glob("*.cpp"))]
        variables = {"cxx": os.environ.get("CXX", "c++")}
        edges = []
        home = cuda_home()
        if home is not None:
            archs = os.environ.get("COMPRESSOR_CUDA_ARCHS", "80;90").split(";")
            codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
            codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
            variables |= {"nvcc": str(home / "bin/nvcc")}
            cxx += ["-DCOMPRESSOR_WITH_CUDA", f'-DCOMPRESSOR_ARCHS="{" ".join(archs)}"']
            cxx.append(f"-isystem{home / 'include'}")
            link += [f"-L{home / 'lib64'}", "-lcudart_static", "-ldl", "-lrt"]
            for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
                edges.append(("nvcc", source, [*NVCC_FLAGS, *codes]))
        edges += [("cxx", source, cxx) for source in sources]
        self._ninja(build, variables, edges, link, Path(self.get_ext_fullpath(extension.name)))

    def _ninja(self, build: Path, variables: dict, edges: list, link: list, target: Path) -> None:
        target = target.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{name} = {value}" for name, value in variables.items()] + [RULES]
        objects = []
        for rule, source, flags in edges:
            objects.append(str(build / f"{source.parent.name}-{source.stem}-{rule}.o"))
            lines.append(f"build {_path(objects[-1])}: {rule} {_path(source)}")
            lines.append(f"  flags = {shlex.join(flags)}")
        lines.append(f"build {_path(target)}: link {' '.join(map(_path, objects))}")
        lines.append(f"  flags = {shlex.join(link)}")
        (build / "build.ninja").write_text("\n".join(lines) + "\n")
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        subprocess.run(["ninja", "-C", str(build), "-j", jobs], check=True, stdout=sys.stderr)


def _path(path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(
    package_dir={"compressor": "compressor", "compressor.kernels": "kernels"},
    packages=[
        "compressor",
        *(f"compressor.{name}" for name in find_packages("compressor")),
        "compressor.kernels",
    ],
    package_data={"compressor": ["py.typed", "held_out_modules.txt"]},
    ext_modules=[Extension("compressor._C", [])],
    cmdclass={"build_ext": Ninja},
)
