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

// out[r, c] = weight where rank[r, c] >= cut[r / group_rows], else 0. A cut below 0 keeps all.
void besa_mask_cpu(const void* weight, int dtype, int64_t rows, int64_t columns, int64_t stride,
                   const uint16_t* rank, const int32_t* cut, int64_t group_rows, void* out,
                   int threads);
int besa_mask_cuda(const void* weight, int dtype, int64_t rows, int64_t columns, int64_t stride,
                   const uint16_t* rank, const int32_t* cut, int64_t group_rows, void* out,
                   void* stream);

// out[g, d] = - sum of weight * grad over the rows of group g where rank < columns * d / buckets,
// d = 0 .. buckets. Every row of rank is a permutation. Groups of more than part_rows rows need
// partial [groups * ceil(group_rows / part_rows), buckets].
void besa_mask_backward_cpu(const void* grad, int64_t grad_stride, const void* weight, int dtype,
                            int64_t rows, int64_t columns, int64_t stride, const uint16_t* rank,
                            int64_t group_rows, int64_t buckets, int64_t part_rows, float* partial,
                            float* out, int threads);
int besa_mask_backward_cuda(const void* grad, int64_t grad_stride, const void* weight, int dtype,
                            int64_t rows, int64_t columns, int64_t stride, const uint16_t* rank,
                            int64_t group_rows, int64_t buckets, int64_t part_rows, float* partial,
                            float* out, void* stream);

// cut[g] = how many weights of each row of group g are pruned: floor(columns * d / last candidate)
// for the mean of d under beta[g, :], or for a d drawn by Philox from (seed, offset, g).
void besa_cut_cpu(const float* beta, int64_t groups, int candidates, int32_t columns, bool sampled,
                  uint64_t seed, uint64_t offset, int32_t* cut, int threads);
int besa_cut_cuda(const float* beta, int64_t groups, int candidates, int32_t columns, bool sampled,
                  uint64_t seed, uint64_t offset, int32_t* cut, void* stream);

// out[r, c] = how many columns of row r come before c by |weight * scale|, then by column. At most
// 65,535 columns; scale may be null (ones); a NaN comes last. On CUDA a row is cut into `parts`
// that fit shared memory at 7 bytes a column; more than one part needs sorted [rows, columns].
void rank_cpu(const void* weight, int dtype, int64_t rows, int64_t columns, int64_t stride,
              const float* scale, uint16_t* out, int threads);
int rank_cuda(const void* weight, int dtype, int64_t rows, int64_t columns, int64_t stride,
              const float* scale, int64_t parts, uint16_t* out, uint32_t* sorted, void* stream);

}  // namespace compressor
