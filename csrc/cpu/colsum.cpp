// out[c] = sum_r scale[r] * |W[r, c]|^p. A thread owns columns, so every column is summed in the
// order of its rows whatever the number of threads.
#include <cmath>

#include "dtype.h"
#include "parallel.h"

namespace compressor {
namespace {

constexpr int64_t kColumns = 1024;  // sums of a tile stay in L1
constexpr int64_t kRows = 64;  // summed in float before they join the total: keeps rounding flat

template <class T>
COMPRESSOR_CLONES void add_row(const T* row, float scale, int power, int64_t count, float* sums) {
  if (power == 1) {
    for (int64_t c = 0; c < count; ++c) sums[c] += scale * std::fabs(widen(row[c]));
  } else {
    for (int64_t c = 0; c < count; ++c) sums[c] += scale * (widen(row[c]) * widen(row[c]));
  }
}

template <class T>
void colsum(const T* weight, int64_t rows, int64_t stride, int64_t begin, int64_t end,
            const float* scale, int power, float* out) {
  float part[kColumns];
  for (int64_t first = begin; first < end; first += kColumns) {
    const int64_t count = std::min(kColumns, end - first);
    std::fill_n(out + first, count, 0.0f);
    for (int64_t top = 0; top < rows; top += kRows) {
      std::fill_n(part, count, 0.0f);
      for (int64_t r = top; r < std::min(top + kRows, rows); ++r) {
        add_row(weight + r * stride + first, scale ? scale[r] : 1.0f, power, count, part);
      }
      for (int64_t c = 0; c < count; ++c) out[first + c] += part[c];
    }
  }
}

}  // namespace

void colsum_cpu(const void* weight, int dtype, int64_t rows, int64_t columns, int64_t stride,
                const float* scale, int power, float* out, int threads) {
  const int64_t grain = std::max<int64_t>(64, (1 << 16) / std::max<int64_t>(rows, 1));
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    parallel_for(columns, grain, threads, [&](int64_t begin, int64_t end) {
      colsum(static_cast<const T*>(weight), rows, stride, begin, end, scale, power, out);
    });
  });
}

}  // namespace compressor
