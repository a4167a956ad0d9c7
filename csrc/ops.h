// Every launcher of the extension. No framework here: addresses, sizes, a dtype code, and the
// number of threads (CPU) or the stream (CUDA). Python has checked and allocated everything;
// outputs are fully overwritten. Matrices are row-major, with the row stride in elements.
//
// CPU launchers return nothing. CUDA launchers do not synchronise and return a cudaError_t.
#pragma once

#include <cstdint>

namespace compressor {

enum DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
enum Activation : int { kSilu = 0, kGelu = 1 };

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

}  // namespace compressor
