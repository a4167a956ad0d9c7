// Gradient of BESA's distribution: sums of W * G over the buckets of ranks, then prefix sums. A
// table says the bucket of every rank; sums are made in one order whatever the number of threads or
// the machine.
#include <vector>

#include "dtype.h"
#include "parallel.h"

namespace compressor {
namespace {

// Separate from the sums: a product fused into an addition would round differently by machine.
template <class T>
COMPRESSOR_CLONES void multiply(const T* a, const T* b, int64_t count, float* out) {
  for (int64_t c = 0; c < count; ++c) out[c] = widen(a[c]) * widen(b[c]);
}

// The bucket of every rank; of what is no rank of a column one more, which nobody reads.
std::vector<uint16_t> bucket_of_rank(int64_t columns, int64_t buckets) {
  std::vector<uint16_t> table(UINT16_MAX + 1, static_cast<uint16_t>(buckets));
  for (int64_t k = 0; k < buckets; ++k) {
    std::fill(table.begin() + columns * k / buckets, table.begin() + columns * (k + 1) / buckets,
              static_cast<uint16_t>(k));
  }
  return table;
}

template <class T>
struct Backward {
  const T* grad;
  const T* weight;
  const uint16_t* rank;
  int64_t columns, grad_stride, weight_stride, buckets;
  std::vector<uint16_t> table;

  struct Scratch {
    explicit Scratch(const Backward& b) : products(b.columns), row(b.buckets + 1) {}
    std::vector<float> products, row;
  };

  void add_rows(int64_t begin, int64_t end, Scratch& scratch, float* sums) const {
    float* products = scratch.products.data();
    float* row = scratch.row.data();
    for (int64_t r = begin; r < end; ++r) {
      multiply(weight + r * weight_stride, grad + r * grad_stride, columns, products);
      const uint16_t* ranks = rank + r * columns;
      std::fill(scratch.row.begin(), scratch.row.end(), 0.0f);
      for (int64_t c = 0; c < columns; ++c) row[table[ranks[c]]] += products[c];
      for (int64_t k = 0; k < buckets; ++k) sums[k] += row[k];
    }
  }
};

}  // namespace

void besa_mask_backward_cpu(const void* grad, int64_t grad_stride, const void* weight, int dtype,
                            int64_t rows, int64_t columns, int64_t stride, const uint16_t* rank,
                            int64_t group_rows, int64_t buckets, int64_t part_rows, float* partial,
                            float* out, int threads) {
  const int64_t parts = (group_rows + part_rows - 1) / part_rows;
  const int64_t groups = rows / group_rows;
  // Bucket k is summed where its prefix sum goes at the end, or in its part's row of `partial`.
  const auto sums_of = [&](int64_t group, int64_t part) {
    if (parts == 1) return out + group * (buckets + 1) + 1;
    return partial + (group * parts + part) * buckets;
  };
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const Backward<T> backward{static_cast<const T*>(grad),
                               static_cast<const T*>(weight),
                               rank,
                               columns,
                               grad_stride,
                               stride,
                               buckets,
                               bucket_of_rank(columns, buckets)};
    const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(columns, 1));
    parallel_for(groups * parts, grain, threads, [&](int64_t begin, int64_t end) {
      typename Backward<T>::Scratch scratch(backward);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t group = i / parts, part = i % parts;
        const int64_t last = std::min((part + 1) * part_rows, group_rows);
        std::fill_n(sums_of(group, part), buckets, 0.0f);
        backward.add_rows(group * group_rows + part * part_rows, group * group_rows + last, scratch,
                          sums_of(group, part));
      }
    });
  });
  parallel_for(groups, 64, threads, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      float* row = out + g * (buckets + 1);
      if (parts > 1) {
        std::fill_n(row + 1, buckets, 0.0f);
        for (int64_t p = 0; p < parts; ++p) {
          const float* sums = sums_of(g, p);
          for (int64_t k = 0; k < buckets; ++k) row[k + 1] += sums[k];
        }
      }
      row[0] = 0;
      double sum = 0;
      for (int64_t k = 1; k <= buckets; ++k) row[k] = static_cast<float>(sum -= row[k]);
    }
  });
}

}  // namespace compressor
