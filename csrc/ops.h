// Every launcher of the extension. No framework here: addresses, sizes, a dtype code, and the
// number of threads (CPU) or the stream (CUDA). Python has checked and allocated everything;
// outputs are fully overwritten. Matrices are row-major, with the row stride in elements.
//
// CPU launchers return nothing. CUDA launchers do not synchronise and return a cudaError_t.
#pragma once

#include <cstdint>

namespace compressor {

enum DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// out[c] = sum_r scale[r] * |weight[r, c]|^power; scale may be null (ones).
void colsum_cpu(const void* weight, int dtype, int64_t rows, int64_t columns, int64_t stride,
                const float* scale, int power, float* out, int threads);

}  // namespace compressor
