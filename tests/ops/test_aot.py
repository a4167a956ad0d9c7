"""Every Triton kernel compiles for sm_80 and sm_90, fits its registers and reads 16 bytes at a time.

Compiling needs no GPU, but it needs a process in which kernels are not interpreted.
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs Linux, for which Triton is published"
)

# Both are colsum's kernel, made wrong: columns that are not neighbours, and tiles too large.
WRONG = """
import dataclasses
from compressor.kernels.aot import compile_variant
from compressor.kernels.colsum import VARIANTS

right = VARIANTS[0]
types, constants = dict(right.types), dict(right.constants)
del constants["stride_column"]
strided = dataclasses.replace(right, types=types | {"stride_column": "i32"}, constants=constants)
built = compile_variant(strided, 90)
assert built.loads["weight"] == 2 and built.too_narrow == ["weight"], built
constants = right.constants | {"BLOCK_ROWS": 128}
built = compile_variant(dataclasses.replace(right, constants=constants, num_warps=1), 90)
assert built.spilled > 0, built
"""

# What Triton makes of sizes of 1 (constants) and of odd sizes and addresses.
ODD = """
import dataclasses
from compressor.kernels.aot import compile_variant, kernel_modules, variants

for variant in [v for m in kernel_modules() for v in variants(m)]:
    odd = {name: kind.removesuffix(":16") for name, kind in variant.types.items()}
    compile_variant(dataclasses.replace(variant, types=odd), 90)
    ones = {name: 1 for name, kind in odd.items() if kind[0] == "i"}
    types = {name: kind for name, kind in variant.types.items() if name not in ones}
    constants = variant.constants | ones
    compile_variant(dataclasses.replace(variant, types=types, constants=constants), 90)
"""


def compiled(*arguments) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def report() -> dict:
    return json.loads(compiled("-m", "compressor.kernels.aot", "--json"))


def test_every_kernel_has_a_variant(report):
    assert report["without_variant"] == []


def test_both_architectures(report):
    by_arch = [[c["variant"] for c in report["compiled"] if c["arch"] == a] for a in (80, 90)]
    assert by_arch[0] == by_arch[1] != []


def test_nothing_spills(report):
    assert [c for c in report["compiled"] if c["spilled"]] == []


def test_matrices_are_read_16_bytes_at_a_time(report):
    assert [c for c in report["compiled"] if c["too_narrow"]] == []


def test_a_spill_and_a_narrow_load_are_seen():
    compiled("-c", WRONG)


def test_odd_sizes_compile_too():
    compiled("-c", ODD)


def test_interpreted_kernels_are_refused():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "compressor.kernels.aot"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "Nothing compiles in Triton's interpreter: unset TRITON_INTERPRET.\n"
