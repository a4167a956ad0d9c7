// For every channel of gate and up [tokens, channels], with h = phi(gate) * up as the model rounds
// it: out = sum_t |h|, h, h^2, |phi(gate)|, |up|, phi(gate)^2, (up phi'(gate))^2.
#include <cmath>

#include "activations.h"
#include "token_sums.h"

namespace compressor {
namespace {

template <class Activation, class T>
COMPRESSOR_CLONES void add(Rows<T> gate, Rows<T> up, int64_t count, float* __restrict sums) {
  for (int64_t c = 0; c < count; ++c) {
    float part[7] = {};
#pragma GCC unroll 4
    for (int i = 0; i < kAtOnce; ++i) {
      const float u = widen(up[i][c]);
      float value, slope;
      Activation::evaluate(widen(gate[i][c]), value, slope);
      const float h = widen(narrow<T>(widen(narrow<T>(value)) * u));
      const float through = u * slope;
      part[0] += std::fabs(h);
      part[1] += h;
      part[2] += h * h;
      part[3] += std::fabs(value);
      part[4] += std::fabs(u);
      part[5] += value * value;
      part[6] += through * through;
    }
#pragma GCC unroll 7
    for (int k = 0; k < 7; ++k) sums[k * kTile + c] += part[k];
  }
}

}  // namespace

void swiglu_moments_cpu(const void* gate, int64_t gate_stride, const void* up, int64_t up_stride,
                        int dtype, int64_t tokens, int64_t channels, const uint8_t* mask,
                        int activation, float* out, int threads) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    with_activation(activation, [&](auto phi) {
      token_sums<7>(mask, tokens, channels, threads, out,
                    [&](const int64_t* token, int64_t first, int64_t count, float* sums) {
                      add<decltype(phi), T>(
                          rows(static_cast<const T*>(gate), gate_stride, token, first, count),
                          rows(static_cast<const T*>(up), up_stride, token, first, count), count,
                          sums);
                    });
    });
  });
}

}  // namespace compressor
