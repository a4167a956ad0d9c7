// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3" (SC 2011). Integers only, so that CPU and GPU agree bit for bit; kernels/philox.py is it
// in PyTorch.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define COMPRESSOR_HOST_DEVICE __host__ __device__
#else
#define COMPRESSOR_HOST_DEVICE
#endif

namespace compressor {

// The first of the four words of counter (low half of `stream`, its high half, `offset` likewise)
// under the key `seed`.
COMPRESSOR_HOST_DEVICE inline uint32_t philox(uint64_t seed, uint64_t offset, uint64_t stream) {
  uint32_t c0 = static_cast<uint32_t>(stream), c1 = static_cast<uint32_t>(stream >> 32);
  uint32_t c2 = static_cast<uint32_t>(offset), c3 = static_cast<uint32_t>(offset >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c0;
    const uint64_t b = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c0;
}

}  // namespace compressor
