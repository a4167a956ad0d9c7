"""The counts of machine code, on a disassembly written by hand."""

import dataclasses

import pytest
from machine_code import LIMITS, complaints

from compressor.kernels.sass import counted, parsed

# As nvdisasm prints it: a loop that moves 36 bytes inside one that moves 4 more, one beside them that
# stays in shared memory, and the trap that ends every kernel.
TEXT = """
.text.cut_kernel:
        .type           cut_kernel,@function
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E R4, desc[UR4][R4.64] ;
.L_x_0:
        /*0020*/              @!P1 LDG.E R5, desc[UR4][R6.64] ;
.L_x_1:
        /*0030*/               @P0 LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x1000] ;
        /*0040*/                   LDGSTS.E.BYPASS.LTC128B.64 [R35], desc[UR16][R2.64], P0 ;
        /*0050*/                   LDGDEPBAR ;
        /*0060*/                   NOP ;
        /*0070*/                   STG.E desc[UR4][R2.64], R8 ;
        /*0080*/             @!UP0 LDG.E.64 R8, desc[UR4][R2.64] ;
        /*0090*/               @P1 BRA `(.L_x_1) ;
        /*00a0*/                   STL [R1], R8 ;
        /*00b0*/                   BRA.U !UP0, `(.L_x_0) ;
.L_x_2:
        /*00c0*/                   LDS.128 R8, [R35] ;
        /*00d0*/               @P2 BRA `(.L_x_2) ;
        /*00e0*/                   EXIT ;
.L_x_3:
        /*00f0*/                   BRA `(.L_x_3);
.text.straight:
        /*0000*/                   LDG.E.U16 R4, desc[UR4][R4.64] ;
        /*0010*/                   STG.E.U8 desc[UR4][R6.64], R4 ;
        /*0020*/                   EXIT ;
"""


def found(name: str):
    return counted(name, *parsed(TEXT)[name])


def test_the_innermost_loop_that_moves_bytes():
    figures = found("cut_kernel")
    assert figures.looped
    assert figures.loads == {8: 2, 16: 1}
    assert figures.stores == {4: 1}
    assert figures.instructions == 6  # without the NOP
    assert figures.bytes == 36
    assert figures.per_byte == pytest.approx(6 / 36)
    assert figures.spills == 1


def test_without_a_loop_all_counts():
    figures = found("straight")
    assert not figures.looped
    assert (figures.loads, figures.stores, figures.instructions) == ({2: 1}, {1: 1}, 3)


def test_what_is_complained_of():
    right = dataclasses.replace(found("cut_kernel"), spills=0, loads={4: 9}, stores={})
    assert complaints("cut_kernel", right) == []
    wrong = {
        "spill": {"spills": 1},
        "bulk copies": {"bulk": 1},
        "narrower than 4": {"loads": {2: 18}},
        "against None": {"stores": {4: 1}},
        "instructions a byte": {"instructions": 60},
    }
    for words, change in wrong.items():
        (said,) = complaints("cut_kernel", dataclasses.replace(right, **change))
        assert words in said
    assert complaints("unknown_kernel", right) == [
        "unknown_kernel fits 0 patterns of LIMITS; it must fit one."
    ]


def test_few_narrow_loads_beside_wide_ones():
    figures = dataclasses.replace(found("cut_kernel"), spills=0, stores={}, instructions=1)
    name = "_colsum_kernel bf16/fp32/fp32 "
    assert complaints(name, dataclasses.replace(figures, loads={4: 2, 16: 2})) == []
    for loads in ({4: 3, 16: 2}, {2: 1, 16: 2}):
        (said,) = complaints(name, dataclasses.replace(figures, loads=loads))
        assert "narrower than 16" in said


def test_a_kernel_has_one_limit():
    assert len({limit.kernel for limit in LIMITS}) == len(LIMITS)
