// Rows of more columns than one block can sort: the ranks within their parts become ranks within
// the row.
#pragma once

#include "elements.cuh"

namespace compressor {
namespace {

constexpr int kMergeThreads = 1024;
constexpr uint32_t kNaN = 0x7f800001;  // the one key of every NaN, beyond infinity

// Bits of floats without a sign sort as the floats do.
__device__ uint32_t key_of(float weight, float scale) {
  return min(__float_as_uint(weight * scale) & 0x7fffffff, kNaN);
}

// How many of `count` ascending keys are below `key`.
__device__ int count_below(const uint32_t* keys, int count, uint32_t key) {
  int low = 0;
  for (int high = count; low < high;) {
    const int middle = (low + high) / 2;
    if (keys[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// One block a part of a row: ranks within the part become ranks within the row.
template <class T>
__global__ void __launch_bounds__(kMergeThreads)
    merge_kernel(const T* weight, int columns, int64_t stride, const float* scale, int width,
                 unsigned parts, uint16_t* out, const uint32_t* sorted) {
  extern __shared__ uint4 memory[];
  auto* keys = reinterpret_cast<uint32_t*>(memory);
  const int64_t row = blockIdx.x / parts;
  const int part = blockIdx.x % parts;
  weight += row * stride;
  sorted += row * columns;
  out += row * columns;
  const int end = min((part + 1) * width, columns);
  for (int other = 0; other < static_cast<int>(parts); ++other) {
    if (other == part) continue;
    const int count = min(width, columns - other * width);
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += kMergeThreads) keys[i] = sorted[other * width + i];
    __syncthreads();
    for (int c = part * width + threadIdx.x; c < end; c += kMergeThreads) {
      const uint32_t key = key_of(widen(weight[c]), scale ? scale[c] : 1.0f);
      // Columns of an earlier part come first among equals.
      out[c] += count_below(keys, count, key + (other < part));
    }
  }
}

}  // namespace
}  // namespace compressor
