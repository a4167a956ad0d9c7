// The words of CUDA C++ that kernels here use, or may soon, for emulator.h.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)

// min(int, long long) and the like, as CUDA has them for every pair.
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

#define VECTORS(type, name, bytes)                                 \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };         \
  struct alignas(bytes) name##4 { type x, y, z, w; };              \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
VECTORS(unsigned short, ushort, 8)
VECTORS(int, int, 16)
VECTORS(unsigned, uint, 16)
VECTORS(float, float, 16)

#define __ldg(from) (*(from))
#define __ldcg(from) (*(from))
#define __ldcs(from) (*(from))
#define __stcg(to, value) (*(to) = (value))
#define __stcs(to, value) (*(to) = (value))
template <class To, class From>
To same_bits(From value) {
  To bits{};
  std::memcpy(&bits, &value, sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
  return bits;
}
inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return same_bits<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline void __threadfence() {}

// What is between two waits is atomic.
#define ATOMIC(name, result)                   \
  template <class T>                           \
  T name(T* at, std::common_type_t<T> value) { \
    const T old = *at;                         \
    *at = result;                              \
    return old;                                \
  }
ATOMIC(atomicAdd, old + value)
ATOMIC(atomicMin, min(old, value))
ATOMIC(atomicMax, max(old, value))
ATOMIC(atomicOr, (old | value))
ATOMIC(atomicExch, value)

namespace emulated {
enum Kind { kIndex, kUp, kDown, kXor };
template <class T>
T shuffle(int line, Kind kind, unsigned mask, T value, unsigned step, unsigned width = kWarp) {
  const unsigned self = lane(), first = self / width * width;
  unsigned source = kind == kIndex ? first + step % width : kind == kXor ? self ^ step : self;
  source += kind == kDown ? step : kind == kUp ? -step : 0;
  if (source / width != self / width) source = self;  // other segments are out of reach
  const unsigned met = wait("a shuffle", line, mask, same_bits<uint64_t>(value));
  if (met >> source & 1) return same_bits<T>(seen[source]);
  return same_bits<T>(uint64_t{0x7f7f7f7f7f7f7f7f});  // what an absent lane has means nothing
}
template <class T, class Fold>
T reduce(int line, unsigned mask, T value, const Fold& fold) {
  const unsigned met = wait("a vote", line, mask, static_cast<uint64_t>(value));
  if (folded_of != met) {
    folded_of = met;
    value = static_cast<T>(seen[__ffs(met) - 1]);
    for (unsigned rest = met & (met - 1); rest; rest &= rest - 1) {
      value = fold(value, static_cast<T>(seen[__ffs(rest) - 1]));
    }
    folded = static_cast<uint64_t>(value);
  }
  return static_cast<T>(folded);
}
}  // namespace emulated

#define __syncthreads() emulated::wait("__syncthreads", __LINE__, 0)
#define __syncwarp(...) \
  emulated::wait("__syncwarp", __LINE__, __VA_ARGS__ + 0 ? __VA_ARGS__ + 0 : ~0u)
#define __shfl_sync(...) emulated::shuffle(__LINE__, emulated::kIndex, __VA_ARGS__)
#define __shfl_up_sync(...) emulated::shuffle(__LINE__, emulated::kUp, __VA_ARGS__)
#define __shfl_down_sync(...) emulated::shuffle(__LINE__, emulated::kDown, __VA_ARGS__)
#define __shfl_xor_sync(...) emulated::shuffle(__LINE__, emulated::kXor, __VA_ARGS__)
#define FOLD(mask, value, result) \
  emulated::reduce(__LINE__, mask, value, [](auto a, auto b) { return result; })
#define __reduce_add_sync(mask, value) FOLD(mask, value, a + b)
#define __reduce_or_sync(mask, value) FOLD(mask, value, a | b)
#define __reduce_and_sync(mask, value) FOLD(mask, value, a& b)
#define __reduce_min_sync(mask, value) FOLD(mask, value, min(a, b))
#define __reduce_max_sync(mask, value) FOLD(mask, value, max(a, b))
#define __ballot_sync(mask, vote) FOLD(mask, unsigned{bool(vote)} << emulated::lane(), a | b)
#define __any_sync(mask, vote) (__ballot_sync(mask, vote) != 0)
#define __all_sync(mask, vote) (__ballot_sync(mask, !(vote)) == 0)

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaGetLastError() {
  return emulated::failure.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = emulated::shared_limit, cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > emulated::shared_limit) return cudaErrorInvalidValue;
  emulated::allowed[reinterpret_cast<const void*>(kernel)] = bytes;
  return cudaSuccess;
}
