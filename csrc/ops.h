// Every launcher of the extension. No framework here: addresses, sizes, a dtype code, and the
// number of threads (CPU) or the stream (CUDA). Python has checked and allocated everything;
// outputs are fully overwritten. Matrices are row-major, with the row stride in elements.
//
// CPU launchers return nothing. CUDA launchers do not synchronise and return a cudaError_t.
#pragma once

#include <cstdint>

namespace compressor {

enum DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
enum Activation : int { kSilu = 0, kGelu = 1, kGeluTanh = 2 };

// out[c] = sum_r scale[r] * |weight[r, c]|^power; scale may be null (ones).
void colsum_cpu(const void* weight, int dtype, int64_t rows, int64_t columns, int64_t stride,
                const float* scale, int power, float* out, int threads);

// out[3, channels] = sum_t |x|, x, x^2 over the tokens whose mask is not 0; mask may be null (all).
void moments_cpu(const void* x, int dtype, int64_t tokens, int64_t channels, int64_t stride,
                 const uint8_t* mask, float* out, int threads);

// out[7, channels] = sum_t |h|, h, h^2, |phi(gate)|, |up|, phi(gate)^2, (up phi'(gate))^2 over the
// tokens whose mask is not 0, where h = phi(gate) * up, rounded to the dtype after each step.
void swiglu_moments_cpu(const void* gate, int64_t gate_stride, const void* up, int64_t up_stride,
                        int dtype, int64_t tokens, int64_t channels, const uint8_t* mask,
                        int activation, float* out, int threads);

// With p = weight * grad * scale: sums of p, |p|, p^2 and, with 5 statistics, |weight|, weight^2
// are added to row_out [statistics, rows / row_group] and column_out [statistics, columns /
// column_group]; either may be null. *nonfinite grows by the products that are infinite or NaN.
void taylor_cpu(const void* weight, int weight_dtype, int64_t weight_stride, const void* grad,
                int grad_dtype, int64_t grad_stride, int64_t rows, int64_t columns, float scale,
                int statistics, float* row_out, int64_t row_group, float* column_out,
                int64_t column_group, int64_t* nonfinite, int threads);

// out[i, j] = weight[rows[i], columns[j]] * scale[j] of one matrix. The fields are 8 bytes each, so
// that a table of them is an int64 array in Python. Lists ascend, and lie inside the matrix.
struct CompactJob {
  const void* weight;
  const int64_t* rows;     // [kept_rows], or null: all
  const int64_t* columns;  // [kept_columns], or null: all
  const float* scale;      // [kept_columns], or null: ones
  void* out;               // [kept_rows, kept_columns], not empty
  int64_t stride;          // of the weight's rows
  int64_t kept_rows;
  int64_t kept_columns;
  int64_t moved;  // bytes of an element whose bits are copied: 1, 2, 4, 8; 0 for arithmetic
  int64_t from;   // dtype codes, where moved is 0
  int64_t to;
};
void compact_cpu(const CompactJob* jobs, int64_t count, int threads);
int compact_cuda(const CompactJob* jobs, int64_t count, void* stream);

// out[r, c] = weight where rank[r, c] >= cut[r / group_rows], else 0, of one matrix that is not
// empty. A cut below 0 keeps all. Fields as in a CompactJob.
struct BesaMaskJob {
  const void* weight;
  const uint16_t* rank;  // [rows, columns]
  const int32_t* cut;    // [rows / group_rows]
  void* out;             // [rows, columns]
  int64_t rows;
  int64_t columns;
  int64_t stride;  // of the weight's rows
  int64_t group_rows;
  int64_t dtype;
};
void besa_mask_cpu(const BesaMaskJob* jobs, int64_t count, int threads);
int besa_mask_cuda(const BesaMaskJob* jobs, int64_t count, void* stream);

// out[g, d] = - sum of weight * grad over the rows of group g where rank < columns * d / buckets,
// d = 0 .. buckets, of one matrix that is not empty. Every row of rank is a permutation. Groups of
// more than part_rows rows need partial, of groups * ceil(group_rows / part_rows) * (buckets + 1).
struct BesaMaskBackwardJob {
  const void* grad;
  const void* weight;
  const uint16_t* rank;
  float* partial;  // or null
  float* out;      // [rows / group_rows, buckets + 1]
  int64_t rows;
  int64_t columns;
  int64_t grad_stride;
  int64_t stride;
  int64_t group_rows;
  int64_t dtype;
};
void besa_mask_backward_cpu(const BesaMaskBackwardJob* jobs, int64_t count, int64_t buckets,
                            int64_t part_rows, int threads);
int besa_mask_backward_cuda(const BesaMaskBackwardJob* jobs, int64_t count, int64_t buckets,
                            int64_t part_rows, void* stream);

// cut[g] = how many weights of each row of group g are pruned: floor(columns[g] * d / last
// candidate) for the mean of d under beta[g, :], or for a d drawn by Philox from (seed, offset, g).
void besa_cut_cpu(const float* beta, int64_t groups, int candidates, const int32_t* columns,
                  bool sampled, uint64_t seed, uint64_t offset, int32_t* cut, int threads);
int besa_cut_cuda(const float* beta, int64_t groups, int candidates, const int32_t* columns,
                  bool sampled, uint64_t seed, uint64_t offset, int32_t* cut, void* stream);

// out[r, c] = how many columns of row r come before c by |weight * scale|, then by column. At most
// 65,535 columns; scale may be null (ones); a NaN comes last. On CUDA a row is cut into `parts`
// that fit shared memory at 7 bytes a column; more than one part needs sorted [rows, columns].
void rank_cpu(const void* weight, int dtype, int64_t rows, int64_t columns, int64_t stride,
              const float* scale, uint16_t* out, int threads);
int rank_cuda(const void* weight, int dtype, int64_t rows, int64_t columns, int64_t stride,
              const float* scale, int64_t parts, uint16_t* out, uint32_t* sorted, void* stream);

// Greedy elimination of `count` of the channels, as kernels/eliminate.py has it, in float or (wide)
// double. inverse, products [channels, channels] and prior [channels] stay; order [count], costs
// [count], v and u [count, channels]. CUDA takes at most 128 at once, and needs diagonals [2, 2,
// channels], taken [channels] and, for every 64 channels, cheapest [2, parts] and places [2,
// parts].
void eliminate_cpu(const void* inverse, const void* products, const void* prior, bool wide,
                   int64_t channels, int64_t count, int64_t* order, void* costs, void* v, void* u,
                   int threads);
int eliminate_cuda(const void* inverse, const void* products, const void* prior, bool wide,
                   int64_t channels, int64_t count, int64_t* order, void* costs, void* v, void* u,
                   void* diagonals, void* cheapest, int32_t* places, uint8_t* taken, void* stream);

}  // namespace compressor
