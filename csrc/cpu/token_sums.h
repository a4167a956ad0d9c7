// Sums over tokens, per channel: what moments and its gated form share. A thread owns channels, and
// adds their tokens in order, so the number of threads changes nothing.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "dtype.h"
#include "parallel.h"

namespace compressor {

constexpr int64_t kTile = 1024;  // channels whose sums stay in the nearest caches
constexpr int kAtOnce = 4;       // tokens added in registers before a sum in memory is touched
constexpr int64_t kFloat = 128;  // tokens summed in float before they join the total in double

// One tile of an input for `kAtOnce` tokens.
template <class T>
using Rows = std::array<const T*, kAtOnce>;

// The tokens that count, in order; then token -1, all zeros, which adds nothing, up to a multiple
// of kAtOnce and once more, so that every group has a next one.
inline std::vector<int64_t> counted(const uint8_t* mask, int64_t tokens) {
  std::vector<int64_t> kept;
  kept.reserve(tokens + 2 * kAtOnce);
  for (int64_t t = 0; t < tokens; ++t) {
    if (!mask || mask[t]) kept.push_back(t);
  }
  while (kept.size() % kAtOnce) kept.push_back(-1);
  kept.insert(kept.end(), kAtOnce, -1);
  return kept;
}

// Channels [first, first + count) of the next kAtOnce tokens. The same channels of those after them
// are requested: processors do not foresee so many short runs by themselves.
template <class T>
Rows<T> rows(const T* x, int64_t stride, const int64_t* token, int64_t first, int64_t count) {
  static const T zeros[kTile] = {};
  Rows<T> found;
  for (int i = 0; i < kAtOnce; ++i) {
    found[i] = token[i] < 0 ? zeros : x + token[i] * stride + first;
    const int64_t next = token[i + kAtOnce];
    for (int64_t c = 0; next >= 0 && c < count; c += 64 / sizeof(T)) {
      __builtin_prefetch(x + next * stride + first + c, 0, 2);
    }
  }
  return found;
}

// add(token, first, count, sums) adds kAtOnce tokens of channels [first, first + count) to
// sums[k * kTile + c]; out [kSums, channels].
template <int kSums, class Add>
void token_sums(const uint8_t* mask, int64_t tokens, int64_t channels, int threads, float* out,
                const Add& add) {
  const std::vector<int64_t> kept = counted(mask, tokens);
  const int64_t last = static_cast<int64_t>(kept.size()) - kAtOnce;
  const int64_t grain = std::max<int64_t>(64, (1 << 16) / std::max<int64_t>(tokens, 1));
  parallel_for(channels, grain, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> part(kSums * kTile);
    std::vector<double> total(kSums * kTile);
    for (int64_t first = begin; first < end; first += kTile) {
      const int64_t count = std::min(kTile, end - first);
      std::fill(total.begin(), total.end(), 0.0);
      for (int64_t top = 0; top < last; top += kFloat) {
        std::fill(part.begin(), part.end(), 0.0f);
        for (int64_t t = top; t < std::min(top + kFloat, last); t += kAtOnce) {
          add(&kept[t], first, count, part.data());
        }
        for (size_t i = 0; i < part.size(); ++i) total[i] += part[i];
      }
      for (int k = 0; k < kSums; ++k) {
        for (int64_t c = 0; c < count; ++c) {
          out[k * channels + first + c] = static_cast<float>(total[k * kTile + c]);
        }
      }
    }
  });
}

}  // namespace compressor
