// How many weights of a row group BESA prunes, from its distribution over candidate sparsities
// d / D: the same code on CPU and GPU, and no operation whose rounding could differ between them.
#pragma once

#include "philox.h"

namespace compressor {

// floor(columns[r] * sum_d beta[r, d] d / D) of kRows neighbouring rows, in double, with beta
// divided by its sum: exact for a beta of one candidate. Products of a float and d are exact, so it
// is no matter whether they are fused. The additions of several rows do not wait for one another.
template <int kRows>
COMPRESSOR_HOST_DEVICE inline void expected_cuts(const float* beta, int candidates,
                                                 const int32_t* columns, int32_t* out) {
  double total[kRows] = {}, weighted[kRows] = {};
  for (int d = 0; d < candidates; ++d) {
    for (int r = 0; r < kRows; ++r) {
      const double share = beta[static_cast<int64_t>(r) * candidates + d];
      total[r] += share;
      weighted[r] += d * share;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const double cut = columns[r] * weighted[r] / (total[r] * (candidates - 1));
    out[r] = !(cut > 0)         ? 0
             : cut < columns[r] ? static_cast<int32_t>(cut)
                                : columns[r];  // 0 for a NaN
  }
}

// floor(columns * d / D) for d drawn from beta: the first d whose prefix sum is above u * total
// with u a multiple of 2^-24 in [0, 1). A candidate of probability 0 is never drawn.
COMPRESSOR_HOST_DEVICE inline int32_t sampled_cut(const float* beta, int candidates,
                                                  int32_t columns, uint32_t random) {
  float total = 0, prefix = 0;
  for (int d = 0; d < candidates; ++d) total += beta[d];
  const float threshold = static_cast<float>(random >> 8) * 0x1p-24f * total;
  for (int d = 0; d < candidates; ++d) {
    prefix += beta[d];
    if (prefix > threshold) {
      return static_cast<int32_t>(static_cast<int64_t>(columns) * d / (candidates - 1));
    }
  }
  return 0;
}

}  // namespace compressor
