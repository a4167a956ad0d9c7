// Gradient of BESA's distribution: sums of W * G over the buckets of ranks, then prefix sums. A
// table says the bucket of every rank; sums are made in one order whatever the number of threads or
// the machine.
#include <vector>

#include "dtype.h"
#include "parallel.h"

namespace compressor {
namespace {

constexpr int kLanes = 8;  // groups at a time, whose prefix sums do not wait for one another

// Separate from the sums: a product fused into an addition would round differently by machine.
template <class T>
COMPRESSOR_CLONES void multiply(const T* a, const T* b, int64_t count, float* out) {
  for (int64_t c = 0; c < count; ++c) out[c] = widen(a[c]) * widen(b[c]);
}

// The place of every rank's sum: bucket k's is k + 1. Place 0 takes what is no rank of a column.
std::vector<uint16_t> places_of_ranks(int64_t columns, int64_t buckets) {
  std::vector<uint16_t> table(columns + 1, 0);
  for (int64_t k = 0; k < buckets; ++k) {
    std::fill(table.begin() + columns * k / buckets, table.begin() + columns * (k + 1) / buckets,
              static_cast<uint16_t>(k + 1));
  }
  return table;
}

// The rows of the groups of one matrix, in parts of which each has its own sums.
struct Backward : BesaMaskBackwardJob {
  int64_t part_rows, width, groups, parts;  // width: of a group's sums, with place 0
  std::vector<uint16_t> table;

  Backward(const BesaMaskBackwardJob& job, int64_t buckets, int64_t part_rows)
      : BesaMaskBackwardJob(job),
        part_rows(part_rows),
        width(buckets + 1),
        groups(rows / group_rows),
        parts((group_rows + part_rows - 1) / part_rows),
        table(places_of_ranks(columns, buckets)) {}

  // Where the prefix sums go at the end, or in the part's row of `partial`.
  float* sums_of(int64_t part) const { return (parts == 1 ? out : partial) + part * width; }

  template <class T>
  void add_part(int64_t which, float* products) const {
    const int64_t part = which % parts;
    const int64_t begin = which / parts * group_rows + part * part_rows;
    const int64_t end = begin + std::min(part_rows, group_rows - part * part_rows);
    float* sums = sums_of(which);
    std::fill_n(sums, width, 0.0f);
    for (int64_t r = begin; r < end; ++r) {
      multiply(static_cast<const T*>(weight) + r * stride,
               static_cast<const T*>(grad) + r * grad_stride, columns, products);
      const uint16_t* ranks = rank + r * columns;
      for (int64_t c = 0; c < columns; ++c) {
        sums[table[std::min<int64_t>(ranks[c], columns)]] += products[c];
      }
    }
  }

  void add_parts(int64_t begin, int64_t end) const {
    std::vector<float> products(columns);
    with_dtype(static_cast<int>(dtype), [&](auto zero) {
      for (int64_t i = begin; i < end; ++i) add_part<decltype(zero)>(i, products.data());
    });
    if (parts == 1) finish_groups(begin, end);  // while their sums are in the cache
  }

  void finish_groups(int64_t begin, int64_t end) const {
    for (; begin + kLanes <= end; begin += kLanes) finish<kLanes>(begin);
    for (; begin < end; ++begin) finish<1>(begin);
  }

  // out[g, d] = - (sum 1 + ... + sum d) of the groups [g, g + kGroups).
  template <int kGroups>
  void finish(int64_t g) const {
    float* row = out + g * width;
    if (parts > 1) {
      std::fill_n(row, kGroups * width, 0.0f);
      for (int64_t p = 0; p < kGroups * parts; ++p) {
        const float* sums = sums_of(g * parts + p);
        for (int64_t k = 0; k < width; ++k) row[p / parts * width + k] += sums[k];
      }
    }
    double sum[kGroups] = {};
    for (int i = 0; i < kGroups; ++i) row[i * width] = 0;
    for (int64_t k = 1; k < width; ++k) {
      for (int i = 0; i < kGroups; ++i) {
        row[i * width + k] = static_cast<float>(sum[i] -= row[i * width + k]);
      }
    }
  }
};

}  // namespace

void besa_mask_backward_cpu(const BesaMaskBackwardJob* jobs, int64_t count, int64_t buckets,
                            int64_t part_rows, int threads) {
  std::vector<Backward> matrices;
  std::vector<Pieces> parts, groups;
  for (int64_t i = 0; i < count; ++i) {
    const Backward& m = matrices.emplace_back(jobs[i], buckets, part_rows);
    parts.push_back({m.groups * m.parts, std::min(part_rows, m.group_rows) * m.columns});
    groups.push_back({m.parts > 1 ? m.groups : 0, m.parts * m.width});
  }
  parallel_for_each(parts, 1 << 15, threads, [&](int64_t i, int64_t begin, int64_t end) {
    matrices[i].add_parts(begin, end);
  });
  parallel_for_each(groups, 1 << 15, threads, [&](int64_t i, int64_t begin, int64_t end) {
    matrices[i].finish_groups(begin, end);
  });
}

}  // namespace compressor
