// Stable rank of |W * scale| within every row: a radix sort of column numbers in shared memory, one
// block a row, lowest digit first. The keys stay where they are; only 2-byte columns move, and the
// last pass writes ranks instead. A pass counts digits for each warp apart, so that equal digits
// keep their order: lanes by ballots, rounds and warps by the counts.
//
// A row too wide for shared memory is cut into parts. Each is ranked by itself and leaves its keys
// in order; a second kernel adds to every rank how many keys of the other parts come before it.
#include "elements.cuh"
#include "rank_merge.cuh"

namespace compressor {
namespace {

constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kWarp = 32;
constexpr int kEach = kDigits / kWarp;  // counts a thread, whatever the number of warps
constexpr int kStride = kDigits + 2;    // of a warp's counts: moves them to other banks
constexpr int kGather = 4;              // keys that a thread has under way
constexpr unsigned kEveryLane = ~0u;

struct Shared {
  uint32_t* keys;    // [columns]
  uint16_t* order;   // [columns]
  uint32_t* totals;  // [2][32], one a warp
  uint16_t* counts;  // [warps][kStride]

  static constexpr int64_t bytes(int64_t columns, int64_t threads) {
    return threads / kWarp * kStride * 2 + 2 * kWarp * 4 + columns * 6;
  }
  __device__ Shared(void* memory, int columns) {
    keys = static_cast<uint32_t*>(memory);
    order = reinterpret_cast<uint16_t*>(keys + columns);
    totals = reinterpret_cast<uint32_t*>(order + columns);
    counts = reinterpret_cast<uint16_t*>(totals + 2 * kWarp);
  }
  __device__ uint32_t digit(uint32_t column, int shift) const {
    return keys[column] >> shift & (kDigits - 1);
  }
};

// Fills shared.keys, up to `padded` with keys that stay last, and shared.order with the columns as
// they are. Returns the bits in which keys differ.
template <class T>
__device__ uint32_t make_keys(const T* row, const float* scale, int columns, int padded, bool wide,
                              const Shared& shared) {
  uint32_t any = 0, all = ~0u;
  if (wide) {
    for (int c = threadIdx.x * 8; c < columns; c += blockDim.x * 8) {
      const Eight<T> weights = load_eight(row + c);
      Eight<float> scales{{1, 1, 1, 1, 1, 1, 1, 1}};
      if (scale) scales = load_eight(scale + c);
      Eight<uint32_t> keys;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        keys.at[e] = key_of(widen(weights.at[e]), scales.at[e]);
        any |= keys.at[e];
        all &= keys.at[e];
      }
      store_eight(shared.keys + c, keys);
    }
  } else {
    for (int c = threadIdx.x; c < columns; c += blockDim.x) {
      const uint32_t key = key_of(widen(row[c]), scale ? scale[c] : 1.0f);
      shared.keys[c] = key;
      any |= key;
      all &= key;
    }
  }
  for (int c = columns + threadIdx.x; c < padded; c += blockDim.x) shared.keys[c] = ~0u;
  for (int c = threadIdx.x; c < padded; c += blockDim.x) shared.order[c] = c;
  any = __reduce_or_sync(kEveryLane, any);
  all = __reduce_and_sync(kEveryLane, all);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (lane == 0) {
    shared.totals[warp] = any;
    shared.totals[kWarp + warp] = all;
  }
  __syncthreads();
  const bool real = lane < blockDim.x / kWarp;
  any = __reduce_or_sync(kEveryLane, real ? shared.totals[lane] : 0);
  all = __reduce_and_sync(kEveryLane, real ? shared.totals[kWarp + lane] : ~0u);
  return any & ~all;
}

// The lanes whose digit is this lane's.
__device__ unsigned peers_of(uint32_t digit) {
  unsigned peers = kEveryLane;
#pragma unroll
  for (int bit = 0; bit < kDigitBits; ++bit) {
    const bool set = digit >> bit & 1;
    const unsigned votes = __ballot_sync(kEveryLane, set);
    peers &= set ? votes : ~votes;
  }
  return peers;
}

// Visits this thread's kEach counts, neighbours in the order of digits and then of warps.
template <class Visit>
__device__ void visit_counts(uint16_t* counts, const Visit& visit) {
  const int warps = blockDim.x / kWarp;
  int digit = threadIdx.x * kEach / warps, warp = threadIdx.x * kEach % warps;
#pragma unroll 4  // all at once, their addresses would stay in registers from pass to pass
  for (int e = 0; e < kEach; ++e) {
    visit(counts[warp * kStride + digit]);
    if (++warp == warps) {
      warp = 0;
      ++digit;
    }
  }
}

// counts[warp][digit] becomes the number of columns with a lower digit, or the same one and a lower
// warp.
__device__ void scan_counts(const Shared& shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  uint32_t total = 0;
  visit_counts(shared.counts, [&](uint16_t& count) { total += count; });
  uint32_t upto = total;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const uint32_t other = __shfl_up_sync(kEveryLane, upto, step);
    if (lane >= step) upto += other;
  }
  if (lane == kWarp - 1) shared.totals[warp] = upto;
  __syncthreads();
  uint32_t before = __reduce_add_sync(kEveryLane, lane < warp ? shared.totals[lane] : 0);
  before += upto - total;
  visit_counts(shared.counts, [&](uint16_t& count) {
    const uint32_t here = count;
    count = before;
    before += here;
  });
  __syncthreads();
}

// Sorts shared.order by one digit of the keys; in the last pass it becomes the rank of every
// column.
template <int kItems>
__device__ void pass(int shift, bool last, const Shared& shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const uint16_t* order = shared.order + warp * kItems * kWarp + lane;
  uint16_t* counts = shared.counts + warp * kStride;
  uint32_t items[kItems];  // a column, and how many of this warp come before among the same digit
  for (int d = lane; d < kDigits; d += kWarp) counts[d] = 0;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kItems; i += kGather) {
    uint32_t digits[kGather];
#pragma unroll
    for (int j = 0; j < kGather; ++j) {
      items[i + j] = order[(i + j) * kWarp];
      digits[j] = shared.digit(items[i + j], shift);
    }
#pragma unroll
    for (int j = 0; j < kGather; ++j) {
      const unsigned peers = peers_of(digits[j]);
      const uint32_t before = counts[digits[j]];
      __syncwarp();
      const uint32_t lower = __popc(peers & ((1u << lane) - 1));
      if (lower == 0) counts[digits[j]] = before + __popc(peers);
      __syncwarp();
      items[i + j] |= (before + lower) << 16;
      // Opaque, or the compiler keeps both halves in registers of their own, and spills.
      asm("" : "+r"(items[i + j]));
    }
  }
  __syncthreads();
  scan_counts(shared);
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const uint32_t column = items[i] & 0xffff;
    const uint32_t place = counts[shared.digit(column, shift)] + (items[i] >> 16);
    shared.order[last ? column : place] = last ? place : column;
  }
  __syncthreads();
}

// One block a part of a row; blockDim.x * kItems covers its `width` columns.
template <class T, int kItems>
__global__ void __launch_bounds__(1024)
    rank_kernel(const T* weight, int columns, int64_t stride, const float* scale, int width,
                unsigned parts, bool wide, uint16_t* out, uint32_t* sorted) {
  extern __shared__ uint4 memory[];
  const int padded = blockDim.x * kItems;
  const Shared shared(memory, padded);
  const int64_t row = blockIdx.x / parts;
  const int begin = static_cast<int>(blockIdx.x % parts) * width;
  const int count = min(width, columns - begin);
  const uint32_t varying = make_keys(weight + row * stride + begin, scale ? scale + begin : nullptr,
                                     count, padded, wide, shared);
  const int low = varying ? __ffs(varying) - 1 : 0;
  const int high = varying ? 32 - __clz(varying) : 1;
  for (int shift = low; shift < high; shift += kDigitBits) {
    pass<kItems>(shift, shift + kDigitBits >= high, shared);
  }
  out += row * columns + begin;
  if (wide) {
    for (int c = threadIdx.x * 8; c < count; c += blockDim.x * 8) {
      store_eight(out + c, load_eight(shared.order + c));
    }
  } else {
    for (int c = threadIdx.x; c < count; c += blockDim.x) out[c] = shared.order[c];
  }
  if (sorted) {
    sorted += row * columns + begin;
    for (int c = threadIdx.x; c < count; c += blockDim.x) sorted[shared.order[c]] = shared.keys[c];
  }
}

template <class T>
cudaError_t rank(const T* weight, int64_t rows, int columns, int64_t stride, const float* scale,
                 unsigned parts, uint16_t* out, uint32_t* sorted, cudaStream_t stream) {
  const int width = (columns + parts - 1) / parts + 7 & ~7;  // parts begin where eights do
  const bool wide = in_eights(weight, columns, stride) && in_eights(out, columns, columns) &&
                    (!scale || in_eights(scale, columns, columns));
  const auto blocks = static_cast<unsigned>(rows * parts);
  const bool few = width <= 16 * 1024;
  const auto kernel = few ? rank_kernel<T, 16> : rank_kernel<T, 32>;
  const int items = few ? 16 : 32;
  const int threads = (width + items * kWarp - 1) / (items * kWarp) * kWarp;
  const int64_t bytes = Shared::bytes(threads * items, threads);
  cudaError_t status = allow_shared(kernel, bytes);
  if (status != cudaSuccess) return status;
  kernel<<<blocks, threads, bytes, stream>>>(weight, columns, stride, scale, width, parts, wide,
                                             out, sorted);
  status = cudaGetLastError();
  if (status != cudaSuccess || parts == 1) return status;
  status = allow_shared(merge_kernel<T>, width * 4);
  if (status != cudaSuccess) return status;
  merge_kernel<T><<<blocks, kMergeThreads, width * 4, stream>>>(weight, columns, stride, scale,
                                                                width, parts, out, sorted);
  return cudaGetLastError();
}

}  // namespace

int rank_cuda(const void* weight, int dtype, int64_t rows, int64_t columns, int64_t stride,
              const float* scale, int64_t parts, uint16_t* out, uint32_t* sorted, void* stream) {
  if (rows == 0 || columns == 0) return cudaSuccess;
  if (rows * parts > INT32_MAX) return cudaErrorInvalidValue;
  return with_device_dtype(dtype, [&](auto zero) {
    return rank(static_cast<const decltype(zero)*>(weight), rows, static_cast<int>(columns), stride,
                scale, static_cast<unsigned>(parts), out, sorted,
                static_cast<cudaStream_t>(stream));
  });
}

}  // namespace compressor
