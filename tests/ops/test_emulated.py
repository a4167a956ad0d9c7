"""What kernels meet on an emulated device: CUDA's words, little shared memory, refused launches."""

import ctypes

import emulated
import emulator
import pytest
import torch
from counting import no_emulator

from compressor.kernels.besa_mask import BACKWARD
from compressor.kernels.rank import OP, rank

WHY = no_emulator(torch.cuda.is_available())
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))

# Of 70 threads: two whole warps and a part of one.
WORDS = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
constexpr unsigned kAll = ~0u;
__global__ void __launch_bounds__(70) words(int* out) {
  __shared__ int total;
  __shared__ float sums[2][3];
  const int i = threadIdx.x, lane = i % 32;
  if (i == 0) total = 0;
  if (i < 6) sums[i / 3][i % 3] = i;
  __syncthreads();
  atomicAdd(&total, i);
  const int half = lane < 16 ? 0xffff : 0xffff0000;
  int* mine = out + i * 16;
  mine[0] = __shfl_sync(kAll, i, 3);
  mine[1] = __shfl_up_sync(kAll, i, 2);
  mine[2] = __shfl_down_sync(kAll, i, 1, 8);
  mine[3] = __shfl_xor_sync(kAll, i, 1);
  mine[4] = __ballot_sync(kAll, i % 3 == 0);
  mine[5] = lane < 16 ? __reduce_add_sync(half, lane) : __reduce_max_sync(half, lane);
  mine[6] = __any_sync(kAll, i == 40) + 2 * __all_sync(kAll, i < 40);
  __syncthreads();
  mine[7] = total;
  mine[8] = static_cast<int>(sums[1][i % 3]);
  mine[9] = __popc(i) + 100 * __ffs(i) + 10000 * __clz(i);
  mine[10] = gridDim.x * 100 + blockIdx.x * 10 + blockDim.x;
  if (lane % 2) return;
  mine[11] = __reduce_min_sync(kAll, lane);
  __syncwarp();
}
__global__ void flat(int* out) { out[0] = 1; }
__global__ void unmet(int* out) {
  if (threadIdx.x < 32) __syncthreads();
  out[0] = 1;
}
extern "C" __attribute__((visibility("default"))) const char* run(int* out, int what) {
  emulated::failure.clear();
  if (what == 0) words<<<1, 70>>>(out);
  if (what == 1) flat<<<1, 1025, 0, nullptr>>>(out);
  if (what == 2) flat<<<dim3(1, 2), dim3(8, 8), 50 * 1024>>>(out);
  if (what == 3) flat<<<0, 8>>>(out);
  if (what == 4) unmet<<<1, 64>>>(out);
  return emulated::failure.c_str();
}
"""


@pytest.fixture(scope="module")
def words():
    """run(what) -> what the threads wrote, [thread][16], and what failed."""
    library = ctypes.CDLL(str(emulator.build({"words.cu": emulator.rewritten(WORDS, "words.cu")})))
    library.run.restype = ctypes.c_char_p

    def run(what: int) -> tuple[list[list[int]], str]:
        out = torch.full((70, 16), -1, dtype=torch.int32)
        failure = library.run(ctypes.c_void_p(out.data_ptr()), what).decode()
        return out.tolist(), failure

    return run


def test_words_mean_what_cuda_says(words):
    out, failure = words(0)
    assert failure == ""
    for i, mine in enumerate(out):
        lane, first = i % 32, i - i % 32
        there = range(first, min(first + 32, 70))
        assert mine[0] == first + 3
        assert mine[1] == (i - 2 if lane >= 2 else i)
        if (down := i + 1 if i % 8 < 7 else i) in there:
            assert mine[2] == down
        assert mine[3] == i ^ 1
        assert mine[4] & 0xFFFFFFFF == sum(1 << (k - first) for k in there if k % 3 == 0)
        lower = [k - first for k in there if k - first < 16]
        assert mine[5] == (sum(lower) if lane < 16 else 31)
        assert mine[6] == (40 in there) + 2 * (there[-1] < 40)
        assert mine[7] == sum(range(70))
        assert mine[8] == 3 + i % 3
        bits = i.bit_length()
        assert mine[9] == i.bit_count() + 100 * (i & -i).bit_length() + 10_000 * (32 - bits)
        assert mine[10] == 170
        assert mine[11] == (-1 if lane % 2 else 0)  # the others had ended


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        (1, "no launch has 1025 threads a block and 0 bytes of shared memory"),
        (2, "no launch has 64 threads a block and 51200 bytes of shared memory, of 49152"),
        (3, "no launch has 8 threads a block"),
        (4, "thread 0 waits at __syncthreads of line 33, thread 32 has ended: they never meet"),
    ],
)
def test_what_no_device_does_is_said(words, what, sentence):
    _, failure = words(what)
    assert sentence in failure
    assert words(0)[1] == ""


def test_the_emulator_stays_small():
    lines = sum(path.read_text().count("\n") for path in emulator.HEADERS.glob("*.h"))
    assert 0 < lines <= 400


def test_what_it_cannot_read_is_named():
    with pytest.raises(
        ValueError, match=r"a.cu, line 2: the emulator cannot read '__shared__ auto"
    ):
        emulator.rewritten("int a;\n  __shared__ auto [x, y] = pair;\n", "a.cu")


@pytest.fixture
def kernels(monkeypatch) -> emulated.Emulated:
    emulated.install(monkeypatch, emulated.library())
    return emulated.library()


@pytest.mark.parametrize("limit", [512, 1024, 7168])
@pytest.mark.parametrize("scaled", [False, True])
def test_rows_of_rank_in_parts(kernels, monkeypatch, limit, scaled):
    monkeypatch.setattr(kernels, "ranked", limit)
    for columns in (513, 1024, 8001):
        weight = torch.randn(3, columns).round(decimals=2)
        weight[0, ::7] = torch.nan
        weight[1, ::5] = -0.0
        scale = torch.rand(columns) if scaled else None
        wanted = OP.implementations["ref"](weight, scale)
        assert torch.equal(rank(weight, scale, backend="emulated").int(), wanted.int())


@pytest.mark.parametrize("shared", [2048, 4096, 20_000])
@pytest.mark.parametrize("groups", [1, 2, 20])
@pytest.mark.parametrize("columns", [1000, 1003])
def test_rows_of_the_gradient_in_tiles(kernels, monkeypatch, shared, groups, columns):
    """Small whole numbers, whose sums are exact in every order."""
    monkeypatch.setattr(kernels, "shared", shared)
    weight, grad = (torch.randint(-8, 9, (20, columns)).bfloat16() for _ in range(2))
    arguments = ([grad], [weight], [rank(torch.randn(20, columns))], [groups], 101)
    assert torch.equal(
        BACKWARD(*arguments, backend="emulated"), BACKWARD(*arguments, backend="ref")
    )
