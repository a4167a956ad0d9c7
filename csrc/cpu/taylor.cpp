// With p = W * G * scale: sums of p, |p|, p^2 (and |W|, W^2) over rows and over columns, in one
// pass. Threads take parts of the rows, whose size depends on the number of rows only, and the
// parts' sums are folded in order: the result does not depend on the number of threads.
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "dtype.h"
#include "parallel.h"

namespace compressor {
namespace {

constexpr int64_t kTile = 1024;  // columns at a time: their products and sums stay in L1
constexpr int64_t kLanes = 32;   // sums side by side that a row is split into
constexpr int64_t kRows = 32;    // of a part, at least
constexpr int64_t kParts = 64;   // at most: each has a sum for every column

// Widens the weights and multiplies; the number of products that are not finite.
template <class W, class G>
COMPRESSOR_CLONES int64_t products(const W* weight, const G* grad, float scale, int64_t count,
                                   float* w, float* p) {
  int32_t finite = 0;
  for (int64_t c = 0; c < count; ++c) {
    w[c] = widen(weight[c]);
    p[c] = w[c] * (widen(grad[c]) * scale);
    finite += std::fabs(p[c]) <= std::numeric_limits<float>::max();
  }
  return count - finite;
}

COMPRESSOR_CLONES void add(const float* x, int64_t count, float* plain, float* absolute,
                           float* square) {
  for (int64_t c = 0; c < count; ++c) {
    plain[c] += x[c];
    absolute[c] += std::fabs(x[c]);
    square[c] += x[c] * x[c];
  }
}

inline float total(float* lanes) {
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

COMPRESSOR_CLONES void reduce(const float* x, int64_t count, float* plain, float* absolute,
                              float* square) {
  float lanes[3][kLanes] = {};
  int64_t first = 0;
  for (; first + kLanes <= count; first += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) {
      lanes[0][i] += x[first + i];
      lanes[1][i] += std::fabs(x[first + i]);
      lanes[2][i] += x[first + i] * x[first + i];
    }
  }
  for (int64_t i = 0; first + i < count; ++i) {
    lanes[0][i] += x[first + i];
    lanes[1][i] += std::fabs(x[first + i]);
    lanes[2][i] += x[first + i] * x[first + i];
  }
  *plain += total(lanes[0]);
  *absolute += total(lanes[1]);
  *square += total(lanes[2]);
}

// Rows [begin, end) into row_sums [statistics, rows] and column_sums [statistics, columns], which
// hold zeros and may be null; the number of products that are not finite.
template <class W, class G>
int64_t sum_part(const W* weight, int64_t weight_stride, const G* grad, int64_t grad_stride,
                 int64_t begin, int64_t end, int64_t rows, int64_t columns, float scale,
                 int statistics, float* row_sums, float* column_sums) {
  float w[kTile], p[kTile], unused[kTile] = {};
  int64_t nonfinite = 0;
  for (int64_t first = 0; first < columns; first += kTile) {
    const int64_t count = std::min(kTile, columns - first);
    for (int64_t r = begin; r < end; ++r) {
      nonfinite += products(weight + r * weight_stride + first, grad + r * grad_stride + first,
                            scale, count, w, p);
      if (row_sums) {
        float* s = row_sums + r;
        reduce(p, count, s, s + rows, s + 2 * rows);
        if (statistics == 5) reduce(w, count, unused, s + 3 * rows, s + 4 * rows);
      }
      if (column_sums) {
        float* s = column_sums + first;
        add(p, count, s, s + columns, s + 2 * columns);
        if (statistics == 5) add(w, count, unused, s + 3 * columns, s + 4 * columns);
      }
    }
  }
  return nonfinite;
}

// out[statistics, channels / group] += sums[parts, statistics, channels]
void fold(const std::vector<float>& sums, int statistics, int64_t channels, int64_t group,
          float* out, int threads) {
  const int64_t step = statistics * channels;
  const int64_t parts = static_cast<int64_t>(sums.size()) / step;
  const int64_t grain = 1 + (1 << 16) / (parts * group);
  parallel_for(step / group, grain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float total = 0.0f;
      for (int64_t part = 0; part < parts; ++part) {
        const float* members = sums.data() + part * step + i * group;
        for (int64_t j = 0; j < group; ++j) total += members[j];
      }
      out[i] += total;
    }
  });
}

}  // namespace

void taylor_cpu(const void* weight, int weight_dtype, int64_t weight_stride, const void* grad,
                int grad_dtype, int64_t grad_stride, int64_t rows, int64_t columns, float scale,
                int statistics, float* row_out, int64_t row_group, float* column_out,
                int64_t column_group, int64_t* nonfinite, int threads) {
  if (rows == 0 || columns == 0) return;
  const int64_t part_rows = std::max(kRows, (rows + kParts - 1) / kParts);
  const int64_t parts = (rows + part_rows - 1) / part_rows;
  std::vector<float> row_sums(row_out ? statistics * rows : 0);
  std::vector<float> column_sums(column_out ? parts * statistics * columns : 0);
  const int64_t grain = 1 + (1 << 16) / (part_rows * columns);
  std::atomic<int64_t> found{0};
  with_dtype(weight_dtype, [&](auto weight_zero) {
    with_dtype(grad_dtype, [&](auto grad_zero) {
      using W = decltype(weight_zero);
      using G = decltype(grad_zero);
      parallel_for(parts, grain, threads, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
          found +=
              sum_part(static_cast<const W*>(weight), weight_stride, static_cast<const G*>(grad),
                       grad_stride, part * part_rows, std::min((part + 1) * part_rows, rows), rows,
                       columns, scale, statistics, row_out ? row_sums.data() : nullptr,
                       column_out ? column_sums.data() + part * statistics * columns : nullptr);
        }
      });
    });
  });
  if (row_out) fold(row_sums, statistics, rows, row_group, row_out, threads);
  if (column_out) fold(column_sums, statistics, columns, column_group, column_out, threads);
  *nonfinite += found;
}

}  // namespace compressor
