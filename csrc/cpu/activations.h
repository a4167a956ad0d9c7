// Activations and their derivatives in float, without branches or calls, so that compilers
// vectorise loops of them. Both of an activation come from one exponential.
#pragma once

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "dtype.h"

namespace compressor {

// e^x to 1.5 ulp; 0 below -87, and e^87 above 87. x = n ln 2 + r; the polynomial in r is a minimax
// fit. A NaN becomes anything: callers multiply by something that is NaN as well.
COMPRESSOR_INLINE float exponential(float given) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float x = std::clamp(given, -87.0f, 87.0f);
  const float shifted = x * 1.44269504f + kShift;
  const float n = shifted - kShift;
  // ln 2 in two parts; n times the first is exact.
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.38146128e-3f;
  p = p * r + 8.36871006e-3f;
  p = p * r + 4.1668389e-2f;
  p = p * r + 1.66665211e-1f;
  p = p * r + 4.9999994e-1f;
  p = p * (r * r) + r + 1.0f;
  const uint32_t bits = to_bits(p) + (to_bits(shifted) << 23);
  return given < -87.0f ? 0.0f : from_bits(bits);
}

struct Silu {
  COMPRESSOR_INLINE static void evaluate(float x, float& value, float& slope) {
    const float rest = 1.0f + exponential(-x);
    const float sigmoid = 1.0f / rest;
    value = x * sigmoid;
    slope = sigmoid * (1.0f + x * (1.0f - sigmoid));
  }
};

// x times the normal distribution's cdf. The tail is e^(-x^2 / 2) t Q(t), t = 1 / (1 + 0.3 z) with
// z = |x| / sqrt(2); Q is a minimax fit of relative error 2e-8.
struct Gelu {
  COMPRESSOR_INLINE static void evaluate(float x, float& value, float& slope) {
    const float bell = exponential(-0.5f * x * x);
    const float t = 1.0f / (1.0f + 0.212132034f * std::fabs(x));
    float q = -0.0647170395f;
    q = q * t + 0.242548227f;
    q = q * t - 0.255613238f;
    q = q * t + 0.273197532f;
    q = q * t - 0.0468156263f;
    q = q * t + 0.107218139f;
    q = q * t + 0.0742412135f;
    q = q * t + 0.0853459686f;
    q = q * t + 0.0845948085f;
    const float tail = bell * t * q;
    const float cdf = x < 0.0f ? tail : 1.0f - tail;
    value = x * cdf;
    slope = cdf + x * (bell * 0.398942280f);
  }
};

// x (1 + tanh u) / 2, which is x times the logistic function of 2 u.
struct GeluTanh {
  COMPRESSOR_INLINE static void evaluate(float x, float& value, float& slope) {
    const float square = x * x;
    const float rest = 1.0f + exponential(-1.59576912f * (x + 0.044715f * square * x));
    const float logistic = 1.0f / rest;
    value = x * logistic;
    slope = logistic + x * (logistic * (1.0f - logistic)) * (1.59576912f + 0.214064449f * square);
  }
};

// body(Activation{}) for the code of an activation.
template <class Body>
void with_activation(int activation, Body&& body) {
  switch (activation) {
    case kSilu: return body(Silu{});
    case kGelu: return body(Gelu{});
    case kGeluTanh: return body(GeluTanh{});
  }
  throw std::invalid_argument("unknown activation code " + std::to_string(activation));
}

}  // namespace compressor
