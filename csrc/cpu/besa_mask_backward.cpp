// Gradient of BESA's distribution: sums of W * G over the buckets of ranks, then prefix sums. A row
// is put in the order of its ranks, so that a bucket is a contiguous range; where buckets are
// narrow, every product goes to its bucket by a table instead. Either way sums are made in one order
// whatever the number of threads or the machine.
#include <vector>

#include "dtype.h"
#include "parallel.h"

namespace compressor {
namespace {

constexpr int kLanes = 8;

// Separate from the sums: a product fused into an addition would round differently by machine.
template <class T>
COMPRESSOR_CLONES void multiply(const T* a, const T* b, int64_t count, float* out) {
  for (int64_t c = 0; c < count; ++c) out[c] = widen(a[c]) * widen(b[c]);
}

COMPRESSOR_CLONES void add_buckets(const float* ordered, int64_t columns, int64_t buckets,
                                   float* sums) {
  int64_t begin = 0;
  for (int64_t k = 0; k < buckets; ++k) {
    const int64_t end = columns * (k + 1) / buckets;
    float lanes[kLanes] = {};
    for (; begin + kLanes <= end; begin += kLanes) {
      for (int i = 0; i < kLanes; ++i) lanes[i] += ordered[begin + i];
    }
    for (int i = 0; begin < end; ++i) lanes[i] += ordered[begin++];
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    sums[k] += lanes[0];
  }
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

  bool narrow() const { return columns < kLanes * buckets; }

  struct Scratch {
    explicit Scratch(const Backward& b) : products(b.columns) {
      if (b.narrow()) {
        table = bucket_of_rank(b.columns, b.buckets);
        scattered.resize(b.buckets + 1);
      } else {
        ordered.resize(UINT16_MAX + 1);  // any rank at all stays inside
      }
    }
    std::vector<float> products, ordered, scattered;
    std::vector<uint16_t> table;
  };

  void add_rows(int64_t begin, int64_t end, Scratch& scratch, float* sums) const {
    float* products = scratch.products.data();
    float* ordered = scratch.ordered.data();
    for (int64_t r = begin; r < end; ++r) {
      multiply(weight + r * weight_stride, grad + r * grad_stride, columns, products);
      const uint16_t* row = rank + r * columns;
      if (narrow()) {
        for (int64_t c = 0; c < columns; ++c) scratch.scattered[scratch.table[row[c]]] += products[c];
      } else {
        for (int64_t c = 0; c < columns; ++c) ordered[row[c]] = products[c];
        add_buckets(ordered, columns, buckets, sums);
      }
    }
    if (narrow()) {
      for (int64_t k = 0; k < buckets; ++k) sums[k] += scratch.scattered[k];
      std::fill(scratch.scattered.begin(), scratch.scattered.end(), 0.0f);
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
                               buckets};
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
