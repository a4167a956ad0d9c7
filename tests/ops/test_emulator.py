"""The emulator of CUDA's kernels sees what is wrong in one: each barrier taken out, each lane shifted.

One library has all faults in it, in the text of the real kernels, and a number says which one is there.
"""

import ctypes
import re
from dataclasses import dataclass

import emulated
import emulator
import pytest
import torch
from counting import no_emulator

from compressor.kernels import besa_mask, compact, eliminate, rank

WHY = no_emulator(torch.cuda.is_available())
pytestmark = [
    pytest.mark.skipif(WHY is not None, reason=str(WHY)),
    pytest.mark.skipif(
        emulator.SANITIZED, reason="not under make asan, which ends at the first fault"
    ),
]

DECLARED = 'extern __attribute__((visibility("default"))) int fault;\n#line 1\n'
BARRIER = re.compile(r"__syncthreads\(\);")
SHUFFLE = re.compile(r"(__shfl\w*_sync\([^,]+, [^,]+, )([^,)]+)")
# What it is, the file, its text, and what stands there instead, where FAULT is 1 with the fault. Two
# more barriers of warps in rank.cu are followed by votes, where lanes meet too: the emulator orders
# threads, and does not know that a vote orders no memory.
OTHERS = [
    (
        "no barrier of a warp",
        "rank.cu",
        "before = counts[digits[j]];\n      __syncwarp();",
        "before = counts[digits[j]];\n      if (!FAULT) __syncwarp();",
    ),
    (
        "too little shared memory",
        "rank.cu",
        "threads, bytes, stream>>>",
        "threads, bytes - 64 * FAULT, stream>>>",
    ),
    (
        "one column too many",
        "besa_mask.cu",
        "min(first + kChunk, columns)",
        "min(first + kChunk, columns + FAULT)",
    ),
    (
        "a wild address",
        "besa_mask.cu",
        "weight += row * stride;",
        "weight += row * stride + (int64_t{FAULT} << 44);",
    ),
    ("wide accesses anywhere", "elements.cuh", "% 16 == 0", "% (16 - 14 * FAULT) == 0"),
]
SENTENCES = {
    "a barrier but for one thread": "they never meet",
    "too little shared memory": "shared memory is written beyond an array's end",
    "one column too many": "A kernel wrote beyond its output",
    "a wild address": "leaves its memory",
    "wide accesses anywhere": "misaligns",
}


@dataclass(frozen=True)
class Fault:
    number: int
    file: str
    line: int
    what: str

    def __str__(self):
        return f"{self.file}:{self.line} {self.what}"


def with_faults(file: str, text: str, first: int) -> tuple[str, list[Fault]]:
    """The text with all faults, numbered from `first` on, and what they are."""
    found = []

    def fault(what: str, text: str, at: int) -> str:
        found.append(Fault(first + len(found), file, text.count("\n", 0, at) + 1, what))
        return f"int{{fault == {found[-1].number}}}"

    def barrier(match):
        gone, left = (
            fault(what, match.string, match.start())
            for what in ("no barrier", "a barrier but for one thread")
        )
        return f"if (!({gone}) && !({left} && threadIdx.x == 7)) {match[0]}"

    def shuffle(match):
        return f"{match[1]}({match[2]}) + {fault('a shifted lane', match.string, match.start())}"

    text = SHUFFLE.sub(shuffle, BARRIER.sub(barrier, text))
    for what, place, old, new in OTHERS:
        if place == file:
            assert old in text, f"{file} has no {old!r} any more, where this test puts a fault"
            text = text.replace(old, new.replace("FAULT", fault(what, text, text.index(old))), 1)
    return text, found


def all_faults() -> tuple[dict[str, str], list[Fault]]:
    texts, found = {}, []
    for path in sorted(emulator.ROOT.glob("csrc/cuda/*")):
        text, here = with_faults(path.name, path.read_text(), len(found) + 1)
        texts[f"csrc/cuda/{path.name}"] = DECLARED + text if here else text
        found += here
    return texts, found


TEXTS, FAULTS = all_faults()


@pytest.fixture(scope="module")
def faulty() -> emulated.Emulated:
    texts = emulator.sources(lambda path, text: TEXTS.get(path, text))
    return emulated.Emulated(emulator.build(texts | {"fault.cpp": DECLARED + "int fault = 0;"}))


def whole(*shape) -> torch.Tensor:
    """Small whole numbers, whose sums are exact in every order."""
    return torch.randint(-8, 9, shape).float()


def runs_right(op, kernels: emulated.Emulated, *arguments) -> bool:
    found = emulated.emulating(op.implementations["ext"], kernels)(*arguments)
    return emulated.same_bits(found, op.implementations["ref"](*arguments))


def rank_is_right(kernels) -> bool:
    kernels.ranked = 512
    narrow = runs_right(rank.OP, kernels, whole(2, 1100), None)
    kernels.ranked = emulated.MOST_RANKED
    return narrow and runs_right(rank.OP, kernels, torch.randn(2, 2100), torch.rand(2100))


def gradient_is_right(kernels) -> bool:
    right = True
    for rows, columns, groups, candidates in [(6, 1003, 3, 101), (22, 512, 2, 301)]:
        weight, grad = whole(rows, columns), whole(rows, columns)
        arguments = (
            [grad],
            [weight],
            [rank.rank(torch.randn(rows, columns))],
            [groups],
            candidates,
        )
        right = right and runs_right(besa_mask.BACKWARD, kernels, *arguments)
    return right


def mask_is_right(kernels) -> bool:
    weight = torch.randn(3, 2200)[:, 3:70]
    cut = torch.tensor([3, 60, 21], dtype=torch.int32)
    arguments = ([weight], [rank.rank(weight)], None, [cut])
    return runs_right(besa_mask.OP, kernels, *arguments)


def compact_is_right(kernels) -> bool:
    weight, rows = torch.randn(50, 300), torch.arange(0, 50, 2)
    return runs_right(compact.OP, kernels, [weight], [rows], [None], [None], None)


def misaligned_mask_is_right(kernels) -> bool:
    weight = torch.randn(3 * 64 + 1)[1:].view(3, 64)
    cut = torch.tensor([3, 60, 21], dtype=torch.int32)
    return runs_right(besa_mask.OP, kernels, [weight], [rank.rank(weight)], None, [cut])


def elimination_is_right(kernels) -> bool:
    drawn = torch.randn(130, 130, dtype=torch.float64)
    products = drawn @ drawn.T / 130 + torch.eye(130)
    inverse, prior = products.flip(0, 1).contiguous(), torch.rand(130).double() + 0.5
    arguments = (inverse, products, prior, 40)
    found = emulated.emulating(eliminate.OP.implementations["ext"], kernels)(*arguments)
    aims = eliminate.OP.implementations["ref"](*arguments)
    return all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(found, aims, strict=True))


RIGHT = {
    "besa_mask.cu": mask_is_right,
    "besa_mask_backward.cu": gradient_is_right,
    "compact.cu": compact_is_right,
    "eliminate.cu": elimination_is_right,
    "elements.cuh": misaligned_mask_is_right,
    "rank.cu": rank_is_right,
    "rank_merge.cuh": rank_is_right,
}


def verdict(file: str, kernels: emulated.Emulated, number: int) -> str:
    """ "right", or what is wrong."""
    fault = ctypes.c_int.in_dll(kernels.library, "fault")
    fault.value = number
    try:
        return "right" if RIGHT[file](kernels) else "wrong"
    except (RuntimeError, AssertionError) as error:
        return str(error)
    finally:
        fault.value = 0


@pytest.mark.parametrize("file", RIGHT)
def test_without_a_fault_all_is_right(file, faulty):
    assert verdict(file, faulty, 0) == "right"


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_is_seen(fault, faulty):
    found = verdict(fault.file, faulty, fault.number)
    assert found != "right"
    if fault.file != "compact.cu":  # whose one barrier has nothing after it that threads wait at
        assert SENTENCES.get(fault.what, "") in found
    assert verdict(fault.file, faulty, 0) == "right"  # nothing is left of it
