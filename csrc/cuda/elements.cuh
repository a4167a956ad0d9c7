// What the kernels share: widening to float, 16-byte accesses, and shared memory beyond 48 KB.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../ops.h"

namespace compressor {

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(__bfloat16_as_ushort(x)) << 16);
}
__device__ inline float widen(__half x) { return __half2float(x); }

// Eight neighbours: one 16-byte access for 2-byte elements, two for floats.
template <class T>
struct alignas(16) Eight {
  T at[8];
};

template <class T>
__device__ inline Eight<T> load_eight(const T* from) {
  return *reinterpret_cast<const Eight<T>*>(from);
}
template <class T>
__device__ inline void store_eight(T* to, const Eight<T>& value) {
  *reinterpret_cast<Eight<T>*>(to) = value;
}
// So many bytes as one access moves them.
template <int kBytes>
struct WordOf;
template <>
struct WordOf<16> {
  using type = uint4;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<2> {
  using type = uint16_t;
};
template <>
struct WordOf<1> {
  using type = uint8_t;
};
template <int kBytes>
using Word = typename WordOf<kBytes>::type;

// To device memory, in words of at most 16 bytes. An assignment of computed elements would be split
// into stores of 2 or 4 bytes.
template <class T>
__device__ inline void write_words(void* to, const T& value) {
  using Each = Word<sizeof(T) < 16 ? sizeof(T) : 16>;
  const auto* words = reinterpret_cast<const Each*>(&value);
#pragma unroll
  for (unsigned i = 0; i < sizeof value / sizeof(Each); ++i) {
    __stcg(static_cast<Each*>(to) + i, words[i]);
  }
}
template <class T>
__device__ inline void write_eight(T* to, const Eight<T>& value) {
  write_words(to, value);
}

// Whether every row of such a matrix consists of aligned eights.
inline bool in_eights(const void* matrix, int64_t columns, int64_t stride) {
  return reinterpret_cast<uintptr_t>(matrix) % 16 == 0 && columns % 8 == 0 && stride % 8 == 0;
}

// Lets a kernel use that many bytes of dynamic shared memory on the current device: all there is,
// as another thread may be about to launch the same kernel with more.
template <class Kernel>
cudaError_t allow_shared(Kernel* kernel, int64_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  int device = 0, most = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status != cudaSuccess) return status;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
}

// launch(T{}) for the type of a dtype code.
template <class Launch>
cudaError_t with_device_dtype(int dtype, Launch&& launch) {
  switch (dtype) {
    case kFloat32: return launch(float{});
    case kBFloat16: return launch(__nv_bfloat16{});
    case kFloat16: return launch(__half{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace compressor
