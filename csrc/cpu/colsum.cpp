// out[c] = sum_r scale[r] * |W[r, c]|^p. Threads take parts of a fixed number of rows, and the
// parts' sums are added in order: the result does not depend on the number of threads.
#include <cmath>
#include <vector>

#include "dtype.h"
#include "parallel.h"

namespace compressor {
namespace {

constexpr int64_t kRows = 128;  // of a part: read as they lie in memory, one after the other

template <class T>
COMPRESSOR_CLONES void add_rows(const T* row, int64_t stride, int64_t columns, const float* scale,
                                int power, float* sums) {
  const T *a = row, *b = row + stride, *c = row + 2 * stride, *d = row + 3 * stride;
  if (power == 1) {
    for (int64_t j = 0; j < columns; ++j) {
      sums[j] += (scale[0] * std::fabs(widen(a[j])) + scale[1] * std::fabs(widen(b[j]))) +
                 (scale[2] * std::fabs(widen(c[j])) + scale[3] * std::fabs(widen(d[j])));
    }
  } else {
    for (int64_t j = 0; j < columns; ++j) {
      const float w = widen(a[j]), x = widen(b[j]), y = widen(c[j]), z = widen(d[j]);
      sums[j] +=
          (scale[0] * (w * w) + scale[1] * (x * x)) + (scale[2] * (y * y) + scale[3] * (z * z));
    }
  }
}

template <class T>
COMPRESSOR_CLONES void add_row(const T* row, int64_t columns, float scale, int power, float* sums) {
  for (int64_t j = 0; j < columns; ++j) {
    const float w = std::fabs(widen(row[j]));
    sums[j] += scale * (power == 1 ? w : w * w);
  }
}

template <class T>
void sum_part(const T* weight, int64_t rows, int64_t columns, int64_t stride, const float* scale,
              int power, float* sums) {
  constexpr float ones[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  std::fill_n(sums, columns, 0.0f);
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    add_rows(weight + r * stride, stride, columns, scale ? scale + r : ones, power, sums);
  }
  for (; r < rows; ++r) {
    add_row(weight + r * stride, columns, scale ? scale[r] : 1.0f, power, sums);
  }
}

}  // namespace

void colsum_cpu(const void* weight, int dtype, int64_t rows, int64_t columns, int64_t stride,
                const float* scale, int power, float* out, int threads) {
  const int64_t parts = (rows + kRows - 1) / kRows;
  std::vector<float> sums(parts * columns);
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* first = static_cast<const T*>(weight);
    const int64_t grain = 1 + (1 << 16) / std::max<int64_t>(kRows * columns, 1);
    parallel_for(parts, grain, threads, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const int64_t top = p * kRows;
        sum_part(first + top * stride, std::min(kRows, rows - top), columns, stride,
                 scale ? scale + top : nullptr, power, sums.data() + p * columns);
      }
    });
  });
  std::fill_n(out, columns, 0.0f);
  for (int64_t p = 0; p < parts; ++p) {
    for (int64_t j = 0; j < columns; ++j) out[j] += sums[p * columns + j];
  }
}

}  // namespace compressor
