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

// out[r, c] = how many columns of row r come before c by |weight * scale|, then by column. At most
// 65,535 columns; scale may be null (ones); a NaN comes last. On CUDA a row is cut into `parts`
// that fit shared memory at 7 bytes a column; more than one part needs sorted [rows, columns].
void rank_cpu(const void* weight, int dtype, int64_t rows, int64_t columns, int64_t stride,
              const float* scale, uint16_t* out, int threads);
int rank_cuda(const void* weight, int dtype, int64_t rows, int64_t columns, int64_t stride,
              const float* scale, int64_t parts, uint16_t* out, uint32_t* sorted, void* stream);

}  // namespace compressor
