// Stable rank of |W * scale| within every row: a radix sort of column numbers, lowest digit first.
// The keys stay where they are; only 2-byte columns move, and the last pass writes ranks instead.
#include <numeric>
#include <vector>

#include "dtype.h"
#include "parallel.h"

namespace compressor {
namespace {

constexpr int kDigitBits = 11;  // at most, so that three passes cover 31 bits and counts stay in L1
constexpr int kPasses = 3;
constexpr uint32_t kNaN = 0x7f800001;  // the one key of every NaN, beyond infinity

// Bits of floats without a sign sort as the floats do. Returns the bits in which keys differ.
template <class T>
COMPRESSOR_CLONES uint32_t make_keys(const T* row, const float* scale, int64_t count,
                                     uint32_t* keys) {
  uint32_t any = 0, all = ~0u;
  for (int64_t c = 0; c < count; ++c) {
    const float importance = widen(row[c]) * (scale ? scale[c] : 1.0f);
    keys[c] = std::min(to_bits(importance) & 0x7fffffff, kNaN);
    any |= keys[c];
    all &= keys[c];
  }
  return any & ~all;
}

struct Sorter {
  explicit Sorter(int64_t columns) : keys(columns), order(columns), next(columns) {}

  void rank(uint32_t varying, uint16_t* out) {
    const int low = varying ? __builtin_ctz(varying) : 0;
    const int bits = varying ? 32 - __builtin_clz(varying) - low : 1;
    const int passes = (bits + kDigitBits - 1) / kDigitBits;
    const int width = (bits + passes - 1) / passes;
    const uint32_t mask = (1u << width) - 1;
    for (int p = 0; p < passes; ++p) count_digits(low + p * width, mask, counts[p]);
    std::iota(order.begin(), order.end(), uint16_t{0});
    for (int p = 0; p < passes; ++p) {
      const int shift = low + p * width;
      if (p + 1 < passes) {
        for (const uint16_t c : order) next[counts[p][keys[c] >> shift & mask]++] = c;
        order.swap(next);
      } else {
        for (const uint16_t c : order) {
          out[c] = static_cast<uint16_t>(counts[p][keys[c] >> shift & mask]++);
        }
      }
    }
  }

  // Into where the first key of each digit goes.
  void count_digits(int shift, uint32_t mask, uint32_t* begins) const {
    std::fill_n(begins, mask + 1, 0);
    for (const uint32_t key : keys) ++begins[key >> shift & mask];
    std::exclusive_scan(begins, begins + mask + 1, begins, 0u);
  }

  std::vector<uint32_t> keys;
  std::vector<uint16_t> order, next;
  uint32_t counts[kPasses][1 << kDigitBits];
};

}  // namespace

void rank_cpu(const void* weight, int dtype, int64_t rows, int64_t columns, int64_t stride,
              const float* scale, uint16_t* out, int threads) {
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(columns, 1));
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    parallel_for(rows, grain, threads, [&](int64_t begin, int64_t end) {
      Sorter sorter(columns);
      for (int64_t r = begin; r < end; ++r) {
        const T* row = static_cast<const T*>(weight) + r * stride;
        sorter.rank(make_keys(row, scale, columns, sorter.keys.data()), out + r * columns);
      }
    });
  });
}

}  // namespace compressor
