// out[i, j] = weight[rows[i], columns[j]] * scale[j]: kept rows and columns of many matrices, in
// one launch where their elements are of one kind.
//
// A block owns a tile of kRows kept rows by kThreads * width kept columns, and a thread `width`
// neighbouring columns of it, whose numbers it keeps in registers for all rows of the tile. Whole
// rows are copied 16 bytes a thread. Chosen columns are written 4 bytes a thread, one 128-byte line
// a warp: neighbouring lanes then also read neighbouring columns, one to three lines a load, where
// 16 bytes a thread would spread every load of a warp over eight.
#include <cuda_runtime.h>

#include <algorithm>
#include <climits>
#include <type_traits>

#include "elements.cuh"

namespace compressor {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 16;   // a tile; its column numbers are read once for all of them
constexpr int kFlight = 8;  // rows whose loads are under way at a time
constexpr int kJobs = 32;   // a launch; kernel arguments hold 4 KB

struct Tiles {
  CompactJob job[kJobs];
  int64_t first[kJobs + 1];  // first tile of each job, then the number of all
  int width[kJobs];          // elements a thread
  unsigned across[kJobs];    // tiles beside each other
};
static_assert(sizeof(Tiles) <= 4096);

template <int kCount>
using Count = std::integral_constant<int, kCount>;

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T item[kWidth];
};

template <class T>
__device__ T narrow(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else {
    return __float2bfloat16_rn(x);
  }
}

// What happens to an element: its bits are moved, or it is multiplied in float and rounded.
template <class T>
struct Move {
  static constexpr bool kBits = true;
  using From = T;
  using To = T;
  static __device__ T apply(T x, float) { return x; }
};
template <class F, class T>
struct Multiply {
  static constexpr bool kBits = false;
  using From = F;
  using To = T;
  static __device__ T apply(F x, float scale) { return narrow<T>(widen(x) * scale); }
};

// The columns [column, column + kWidth) of a tile; its rows begin at start[] in the weight.
template <class Operation, int kWidth, bool kChosen>
__device__ void copy_tile(const CompactJob& job, const int64_t* start, int64_t row,
                          int64_t column) {
  using From = typename Operation::From;
  using To = typename Operation::To;
  // Whole rows of bits are words: in a pack of elements each would be taken apart.
  constexpr bool kWords = Operation::kBits && !kChosen;
  using Read = std::conditional_t<kWords, Word<sizeof(From) * kWidth>, Pack<From, kWidth>>;
  using Write = Pack<To, kWidth>;
  if (column >= job.kept_columns) return;
  uint32_t source[kWidth];  // Python allows no more columns than 2^32
  float scale[kWidth];
#pragma unroll
  for (int k = 0; k < kWidth; ++k) {
    if constexpr (kChosen) source[k] = static_cast<uint32_t>(job.columns[column + k]);
    scale[k] = job.scale ? job.scale[column + k] : 1.0f;
  }
  const From* weight = static_cast<const From*>(job.weight) + (kChosen ? 0 : column);
  const int64_t kept_columns = job.kept_columns;
  To* out = static_cast<To*>(job.out) + row * kept_columns + column;
  // All loads of these rows are under way before the first store.
  const auto copy_rows = [&](auto count, int top) {
    constexpr int kCount = decltype(count)::value;
    Read in[kCount];
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      const From* from = weight + start[top + r];
      if constexpr (kChosen) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) in[r].item[k] = from[source[k]];
      } else {
        in[r] = *reinterpret_cast<const Read*>(from);
      }
    }
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      if constexpr (kWords) {
        write_words(out, in[r]);
      } else {
        Write result;
#pragma unroll
        for (int k = 0; k < kWidth; ++k) result.item[k] = Operation::apply(in[r].item[k], scale[k]);
        write_words(out, result);
      }
      out += kept_columns;
    }
  };
  const int rows = static_cast<int>(min(int64_t{kRows}, job.kept_rows - row));
  int top = 0;
  for (; top + kFlight <= rows; top += kFlight) copy_rows(Count<kFlight>{}, top);
#pragma unroll 1
  for (; top < rows; ++top) copy_rows(Count<1>{}, top);
}

constexpr int larger(int a, int b) { return a > b ? a : b; }

// Elements a thread: as much as it copies of whole rows, and as it writes of chosen columns.
template <class Operation>
struct Width {
  static constexpr int kFrom = sizeof(typename Operation::From);
  static constexpr int kTo = sizeof(typename Operation::To);
  static constexpr int kWhole = 16 / larger(kFrom, kTo);
  static constexpr int kChosen = larger(4 / kTo, 1);
};

template <class Operation>
__global__ void __launch_bounds__(kThreads) compact_kernel(const __grid_constant__ Tiles tiles) {
  __shared__ int64_t start[kRows];
  int which = 0;
  while (blockIdx.x >= tiles.first[which + 1]) ++which;
  const CompactJob& job = tiles.job[which];
  const int width = tiles.width[which];
  const unsigned tile = blockIdx.x - static_cast<unsigned>(tiles.first[which]);
  const unsigned across = tiles.across[which];
  const int64_t row = int64_t{tile / across} * kRows;
  const int64_t column = (int64_t{tile % across} * kThreads + threadIdx.x) * width;
  if (threadIdx.x < kRows && row + threadIdx.x < job.kept_rows) {
    const int64_t kept = row + threadIdx.x;
    start[threadIdx.x] = (job.rows ? job.rows[kept] : kept) * job.stride;
  }
  __syncthreads();
  if (job.columns == nullptr) {
    if (width > 1) {
      copy_tile<Operation, Width<Operation>::kWhole, false>(job, start, row, column);
    } else {
      copy_tile<Operation, 1, false>(job, start, row, column);
    }
  } else if (width > 1) {
    copy_tile<Operation, Width<Operation>::kChosen, true>(job, start, row, column);
  } else {
    copy_tile<Operation, 1, true>(job, start, row, column);
  }
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool divides(int64_t bytes, const void* address, int64_t row_bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0 && row_bytes % bytes == 0;
}

// Elements a thread: several where every row begins at a multiple of what a thread reads or writes.
template <class Operation>
int width_of(const CompactJob& job) {
  using W = Width<Operation>;
  const int width = job.columns ? W::kChosen : W::kWhole;
  const bool writes = divides(width * W::kTo, job.out, job.kept_columns * W::kTo);
  const bool reads = job.columns || divides(width * W::kFrom, job.weight, job.stride * W::kFrom);
  return writes && reads ? width : 1;
}

template <class Operation>
int launch(const CompactJob* jobs, int64_t count, cudaStream_t stream) {
  for (int64_t begin = 0; begin < count; begin += kJobs) {
    Tiles tiles{};
    const int64_t here = std::min<int64_t>(count - begin, kJobs);
    for (int64_t i = 0; i < here; ++i) {
      const CompactJob& job = tiles.job[i] = jobs[begin + i];
      tiles.width[i] = width_of<Operation>(job);
      tiles.across[i] =
          static_cast<unsigned>(divide_up(job.kept_columns, kThreads * tiles.width[i]));
      tiles.first[i + 1] = tiles.first[i] + tiles.across[i] * divide_up(job.kept_rows, kRows);
    }
    if (tiles.first[here] > INT_MAX) return cudaErrorInvalidValue;
    const auto blocks = static_cast<unsigned>(tiles.first[here]);
    compact_kernel<Operation><<<blocks, kThreads, 0, stream>>>(tiles);
    const cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

template <class From>
int launch_to(const CompactJob* jobs, int64_t count, cudaStream_t stream) {
  switch (jobs->to) {
    case kFloat32: return launch<Multiply<From, float>>(jobs, count, stream);
    case kBFloat16: return launch<Multiply<From, __nv_bfloat16>>(jobs, count, stream);
    case kFloat16: return launch<Multiply<From, __half>>(jobs, count, stream);
  }
  return cudaErrorInvalidValue;
}

// Jobs of one kind of element.
int launch_kind(const CompactJob* jobs, int64_t count, cudaStream_t stream) {
  switch (jobs->moved) {
    case 1: return launch<Move<uint8_t>>(jobs, count, stream);
    case 2: return launch<Move<uint16_t>>(jobs, count, stream);
    case 4: return launch<Move<uint32_t>>(jobs, count, stream);
    case 8: return launch<Move<uint64_t>>(jobs, count, stream);
  }
  switch (jobs->from) {
    case kFloat32: return launch_to<float>(jobs, count, stream);
    case kBFloat16: return launch_to<__nv_bfloat16>(jobs, count, stream);
    case kFloat16: return launch_to<__half>(jobs, count, stream);
  }
  return cudaErrorInvalidValue;
}

bool same_kind(const CompactJob& a, const CompactJob& b) {
  return a.moved == b.moved && a.from == b.from && a.to == b.to;
}

}  // namespace

int compact_cuda(const CompactJob* jobs, int64_t count, void* stream) {
  for (int64_t begin = 0, end = 0; begin < count; begin = end) {
    while (end < count && same_kind(jobs[begin], jobs[end])) ++end;
    const int status = launch_kind(jobs + begin, end - begin, static_cast<cudaStream_t>(stream));
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace compressor
