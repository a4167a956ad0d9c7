// bfloat16 and float16 on the CPU: widening to float and rounding back, and dispatch by code.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "../ops.h"

// One build for every x86-64, with further bodies for machines with AVX2, FMA and F16C or with
// AVX-512, chosen when the module is loaded. Loops in such a function are vectorised for each.
// Levels, as "arch=haswell" would be chosen on that very processor only; GCC knows them from
// version 12. Not with AddressSanitizer: the choice is made before it is ready.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__) && \
    !defined(__SANITIZE_ADDRESS__)
#if __GNUC__ >= 12
#define COMPRESSOR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define COMPRESSOR_CLONES __attribute__((target_clones("avx2", "default")))
#endif
#else
#define COMPRESSOR_CLONES
#endif

// What such a function calls must become part of it: GCC inlines nothing longer into another level.
#if defined(__GNUC__)
#define COMPRESSOR_INLINE __attribute__((always_inline)) inline
#else
#define COMPRESSOR_INLINE inline
#endif

namespace compressor {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float widen(float x) { return x; }
inline float widen(bfloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
// Without branches, so that compilers vectorise it: _Float16 is a library call without F16C. The
// product is exact and rebiases the exponent, of subnormals too; infinity and NaN get theirs back.
COMPRESSOR_INLINE float widen(float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  uint32_t bits = to_bits(from_bits(magnitude) * 0x1p112f);
  bits |= static_cast<int32_t>(magnitude) >= (31 << 23) ? 255u << 23 : 0u;
  return from_bits(sign | bits);
}

template <class T>
T narrow(float x);
template <>
inline float narrow<float>(float x) {
  return x;
}
// To nearest, ties to even, as torch rounds; a NaN stays a (quiet) NaN.
template <>
COMPRESSOR_INLINE bfloat16 narrow<bfloat16>(float x) {
  const uint32_t bits = to_bits(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40;
  return {static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded)};
}
template <>
COMPRESSOR_INLINE float16 narrow<float16>(float x) {
  const uint32_t sign = (to_bits(x) >> 16) & 0x8000;
  const uint32_t magnitude = to_bits(x) & 0x7fffffff;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 leaves a subnormal's multiple of 2^-24 in the lowest bits, rounded by the machine.
  const uint32_t tiny = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);
  uint32_t bits = magnitude < (113u << 23) ? tiny : normal;
  bits = magnitude >= 0x477ff000 ? 0x7c00 : bits;  // 65520 and beyond round to infinity
  bits = magnitude > 0x7f800000 ? 0x7e00 : bits;
  return {static_cast<uint16_t>(sign | bits)};
}

// body(T{}) for the type of a dtype code.
template <class Body>
void with_dtype(int dtype, Body&& body) {
  switch (dtype) {
    case kFloat32: return body(float{});
    case kBFloat16: return body(bfloat16{});
    case kFloat16: return body(float16{});
  }
  throw std::invalid_argument("unknown dtype code " + std::to_string(dtype));
}

}  // namespace compressor
