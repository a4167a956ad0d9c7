"""Every Triton kernel compiles for every architecture, fits its registers, reads 16 bytes at a time,
and is made of no more machine code than the table in tests/machine_code.py allows.

Compiling needs no GPU, but it needs a process in which kernels are not interpreted.
"""

import json
import os
import subprocess
import sys

import pytest
from machine_code import ARCHS, TRITON_CACHE, complaints

from compressor.kernels.sass import Figures

ALL_VARIANTS = (80, 90)  # architectures for which a plain run of the tests compiles every variant

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs Linux, for which Triton is published"
)

# Both are colsum's kernel, made wrong: columns that are not neighbours, and tiles too large.
WRONG = """
import dataclasses, json
from compressor.kernels.aot import compile_variant
from compressor.kernels.colsum import VARIANTS

right = VARIANTS[0]
types, constants = dict(right.types), dict(right.constants)
del constants["stride_column"]
strided = dataclasses.replace(right, types=types | {"stride_column": "i32"}, constants=constants)
narrow = compile_variant(strided, 90)
assert narrow.loads["weight"] == 2 and narrow.too_narrow == ["weight"], narrow
constants = right.constants | {"BLOCK_ROWS": 128}
spilling = compile_variant(dataclasses.replace(right, constants=constants, num_warps=1), 90)
assert spilling.spilled > 0, spilling
print(json.dumps([dataclasses.asdict(built) for built in (narrow, spilling)]))
"""

# What Triton makes of sizes of 1 (constants) and of odd sizes and addresses.
ODD = """
import dataclasses
import sys
from compressor.kernels.aot import compile_variant, kernel_modules, variants

found = [variants(m) for m in kernel_modules()]
every = sys.argv[1] == "every"
for variant in [v for all_of_one in found for v in (all_of_one if every else all_of_one[:1])]:
    odd = {name: kind.removesuffix(":16") for name, kind in variant.types.items()}
    compile_variant(dataclasses.replace(variant, types=odd), 90)
    ones = {name: 1 for name, kind in odd.items() if kind[0] == "i"}
    types = {name: kind for name, kind in variant.types.items() if name not in ones}
    constants = variant.constants | ones
    compile_variant(dataclasses.replace(variant, types=types, constants=constants), 90)
"""


def compiled(*arguments) -> str:
    """What such a Python prints."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = TRITON_CACHE
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def report(arch: int, *options: str) -> dict:
    """What `compressor.kernels.aot` says of an architecture."""
    return json.loads(
        compiled("-m", "compressor.kernels.aot", "--json", "--arch", str(arch), *options)
    )


def judged(row: dict) -> list[str]:
    """The complaints about one compiled variant."""
    code = row["code"]
    widths = {k: {int(w): n for w, n in code[k].items()} for k in ("loads", "stores")}
    return complaints(row["variant"], Figures(**code | widths))


def complaints_of(report: dict) -> list[str]:
    return [sentence for row in report["compiled"] for sentence in judged(row)]


@pytest.mark.parametrize("arch", ARCHS)
def test_machine_code_of_a_variant_each(arch):
    """Where no other test compiles all variants; those are slow.

    Of all variants: none spills, and matrices are read 16 bytes at a time.
    """
    whole = arch in ALL_VARIANTS
    found = report(arch, *([] if whole else ["--first"]))
    assert found["without_variant"] == []
    assert found["compiled"] and complaints_of(found) == []
    if whole:
        assert [row for row in found["compiled"] if row["too_narrow"]] == []
        assert [row for row in found["compiled"] if row["spilled"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("arch", sorted({*ARCHS} - {*ALL_VARIANTS}))
def test_machine_code_of_all_variants(arch):
    assert complaints_of(report(arch)) == []


def test_a_spill_and_a_narrow_load_are_seen():
    narrow, spilling = map(judged, json.loads(compiled("-c", WRONG)))
    assert any("loads {2: " in sentence and "narrower than 16" in sentence for sentence in narrow)
    assert any("that spill" in sentence for sentence in spilling)


@pytest.mark.parametrize("which", ["first", pytest.param("every", marks=pytest.mark.slow)])
def test_odd_sizes_compile_too(which):
    """The first variant of a module, or every one."""
    compiled("-c", ODD, which)


def test_interpreted_kernels_are_refused():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "compressor.kernels.aot"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "Nothing compiles in Triton's interpreter: unset TRITON_INTERPRET.\n"
