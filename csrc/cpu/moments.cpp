// out = sum_t |x|, sum_t x, sum_t x^2 for every channel of x[tokens, channels].
#include <cmath>

#include "token_sums.h"

namespace compressor {
namespace {

template <class T>
COMPRESSOR_CLONES void add(Rows<T> x, int64_t count, float* __restrict sums) {
  for (int64_t c = 0; c < count; ++c) {
    float absolute = 0, sum = 0, square = 0;
#pragma GCC unroll 4
    for (int i = 0; i < kAtOnce; ++i) {
      const float value = widen(x[i][c]);
      absolute += std::fabs(value);
      sum += value;
      square += value * value;
    }
    sums[c] += absolute;
    sums[kTile + c] += sum;
    sums[2 * kTile + c] += square;
  }
}

}  // namespace

void moments_cpu(const void* x, int dtype, int64_t tokens, int64_t channels, int64_t stride,
                 const uint8_t* mask, float* out, int threads) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    token_sums<3>(mask, tokens, channels, threads, out,
                  [&](const int64_t* token, int64_t first, int64_t count, float* sums) {
                    add<T>(rows(static_cast<const T*>(x), stride, token, first, count), count,
                           sums);
                  });
  });
}

}  // namespace compressor
