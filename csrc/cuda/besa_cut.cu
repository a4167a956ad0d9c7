// The cuts of all row groups, one thread a group; see besa_cut.h.
#include "../besa_cut.h"
#include "../ops.h"

namespace compressor {
namespace {

constexpr int kThreads = 64;  // few, so that 4,096 groups reach half of the multiprocessors

__global__ void cut_kernel(const float* beta, int64_t groups, int candidates,
                           const int32_t* columns, bool sampled, uint64_t seed, uint64_t offset,
                           int32_t* cut) {
  const int64_t g = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (g >= groups) return;
  const float* row = beta + g * candidates;
  if (sampled) {
    cut[g] = sampled_cut(row, candidates, columns[g], philox(seed, offset, g));
  } else {
    expected_cuts<1>(row, candidates, columns + g, cut + g);
  }
}

}  // namespace

int besa_cut_cuda(const float* beta, int64_t groups, int candidates, const int32_t* columns,
                  bool sampled, uint64_t seed, uint64_t offset, int32_t* cut, void* stream) {
  if (groups == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((groups + kThreads - 1) / kThreads);
  cut_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      beta, groups, candidates, columns, sampled, seed, offset, cut);
  return cudaGetLastError();
}

}  // namespace compressor
